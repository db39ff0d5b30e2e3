"""A sweep without a cluster: what is known of its trials, on the disk, and each of them as a process of its own."""
