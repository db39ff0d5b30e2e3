"""The processes that train one adapter together: what they do with one voice, and how the others are led."""
