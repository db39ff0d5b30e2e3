"""What a container is asked to do, each a story from top to bottom."""
