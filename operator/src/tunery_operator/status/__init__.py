"""Judge: a snapshot of what is in the cluster in, the status and its events out; pure, the clock is an argument."""
