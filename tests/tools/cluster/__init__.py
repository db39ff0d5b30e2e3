"""A real Kubernetes, an S3 server and a registry on one machine, for the demo and the tests."""
