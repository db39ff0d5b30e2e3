"""The tests without a node, in parts that run side by side."""
