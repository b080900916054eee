"""The transaction pipeline: an intent goes in, exactly one effect comes out on chain."""
