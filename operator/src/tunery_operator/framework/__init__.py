"""Kopf, and what it is fed instead of the cluster: it calls a handler for each object of ours that changed."""
