"""BatchInference: check a file of requests, ask a server line by line, keep the answers in parts, publish them."""
