"""The plan of a run: made once from manifest, data and device, for preflight and for training."""
