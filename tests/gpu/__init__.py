"""Runs on a real GPU: loads of known kinds, and what the agent reads of them. Needs torch with CUDA, and a driver."""
