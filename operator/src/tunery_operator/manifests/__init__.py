"""Build: a plan in, dicts for the API server out; nothing is decided here."""
