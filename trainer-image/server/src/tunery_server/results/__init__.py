"""The server that the client fetches results from: `python -m tunery_server fetch run.json`."""
