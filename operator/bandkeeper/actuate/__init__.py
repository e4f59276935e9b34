"""Moves the two knobs: replicas through the scale subresource, the batch cap through adapters."""
