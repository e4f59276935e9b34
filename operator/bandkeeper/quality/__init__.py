"""Utilisation quality: how much of the GPU's busy time is real work. Pure."""
