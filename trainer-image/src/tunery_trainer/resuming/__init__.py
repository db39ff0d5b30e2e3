"""Going on from a checkpoint: what it remembers, whether a run may go on from it, and how it does."""
