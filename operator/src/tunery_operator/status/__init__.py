"""Compute the status and its events from a snapshot of the cluster; pure, the clock is an argument."""
