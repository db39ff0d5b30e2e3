"""What clients ask: the allowed routes, their keys, and the way of a request through to the engine and back."""
