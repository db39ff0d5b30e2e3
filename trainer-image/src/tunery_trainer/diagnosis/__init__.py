"""What a run's numbers say: whether it learns, and with what certainty; numbers only, nothing heavy."""
