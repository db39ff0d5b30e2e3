"""Build the manifests of children from plans: dicts for the API server."""
