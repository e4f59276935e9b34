"""Bandkeeper: holds a GPU utilisation band with two knobs, batch size and replicas, inside the latency SLO."""

__version__ = "0.1.0"
