"""Merging adapters into one, or into their base model, without ever holding more than a tensor or two."""
