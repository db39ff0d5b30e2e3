"""The loader: what is to be served is brought, verified, loaded and probed, and only then routed to."""
