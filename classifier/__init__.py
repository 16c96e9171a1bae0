"""Downstream classification: what an embedding is worth on US8K, ESC-50 and the like."""
