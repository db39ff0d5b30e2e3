"""The loop: base, adapter, optimizer steps, checkpoints and evaluation, in that order."""
