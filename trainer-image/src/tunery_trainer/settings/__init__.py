"""What the manifest leaves open, decided: no tensor, and nothing heavy, is imported here."""
