"""What people are told: progress, curves, the model card, and the parts of the status."""
