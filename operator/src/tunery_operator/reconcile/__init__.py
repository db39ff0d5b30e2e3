"""The stories: what happens to an object, from top to bottom."""
