"""What the processes that train one adapter together do with one voice."""
