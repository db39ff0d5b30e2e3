"""What the trainer and the server of adapters share: their error, storage, inputs, reports; nothing heavy."""
