"""The status of a server: what its Deployment, its pods and their reports say, told once."""
