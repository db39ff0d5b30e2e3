"""The frozen base model, of which no code is ever run: loading, structure, memory, attention."""
