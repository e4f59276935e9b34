"""The rules that the lab compares: ours, the peers' from what they published, and bounds. One file each."""
