"""The endpoint that pods post their progress to."""
