"""The Tunery API, written once: kinds, run contract, names, failure reasons."""
