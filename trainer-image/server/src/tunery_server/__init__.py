"""The server of adapters: a door that clients ask, and a loader that brings adapters into the engine behind it."""
