"""A release: one version everywhere, a dated changelog, a commit and a tag; the standard library only."""
