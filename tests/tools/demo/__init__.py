"""`make demo`: from nothing to a fine-tuned adapter in S3, and what it changed."""
