"""What happens to an object, from top to bottom: the one room where kube, status and manifests meet."""
