"""Compute the status of an AdapterServer from its Deployment, its pods and their reports."""
