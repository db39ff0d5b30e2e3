"""From a key to its reconcile: whether this replica acts, who is next, one look at an object at a time."""
