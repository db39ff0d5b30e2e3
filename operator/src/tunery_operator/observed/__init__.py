"""What is kept of the cluster's objects: the few fields that a verdict needs, and how times are written."""
