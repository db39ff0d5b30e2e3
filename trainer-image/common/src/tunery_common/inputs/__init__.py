"""Models and data files, brought from wherever they lie, known by their digests, kept for others, looked at."""
