"""Provide the search of a LoRASweep, without Kubernetes: the space, the history, proposals, pruning, and decisions."""
