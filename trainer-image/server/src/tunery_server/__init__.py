"""The server of adapters: a gateway that clients ask, and a loader that brings adapters into the engine behind it."""
