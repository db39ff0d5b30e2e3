"""Everything that talks to the cluster: read, apply, status, events; plain dicts over one connection pool."""
