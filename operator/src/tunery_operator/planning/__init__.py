"""Plan the children of an object from its spec, its owner and the settings: frozen plans, no manifests."""
