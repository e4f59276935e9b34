"""The node agent: reads the node's GPUs by NVML and GPM, finds the pods that hold them, exports one set of metrics.

It stands alone: it imports nothing of the other rooms, and they nothing of it.
"""
