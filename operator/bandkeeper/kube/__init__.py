"""The cluster as seen from the operator: client, reflector, lease, events, status."""
