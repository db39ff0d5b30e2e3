"""What jobs of one namespace share: base models and prepared data in a claim, filled by preflight."""
