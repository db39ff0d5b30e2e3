"""Read the objects of the cluster into typed views with the few fields that a status needs."""
