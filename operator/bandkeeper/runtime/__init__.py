"""The running operator: settings, kopf as the front door, the control loop, and what it says."""
