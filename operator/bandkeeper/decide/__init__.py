"""The decision: (policy, snapshot, state, now) -> (Decision, state). Pure: no IO, no clock."""
