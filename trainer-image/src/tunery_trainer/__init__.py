"""The Tunery trainer: preflight, training and merging, in a pod or on a laptop."""

STOPPED_RUN_ENV = "TUNERY_STOPPED_RUN"
"""Names the RunSpec of a run without a cluster whose process was told to stop: its successor publishes it."""
