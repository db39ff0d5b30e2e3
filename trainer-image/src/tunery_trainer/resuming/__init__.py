"""Checkpoints in the store, and going on from one: what it remembers, whether a run may, and how it does."""
