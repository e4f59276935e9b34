"""The API: custom resources, signals, snapshots, conditions and reasons. Pure: no IO and no clock."""
