"""Provide the subcommands of `tunery`, one module for one or for a few related ones."""
