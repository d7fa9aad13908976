"""Vectors and scores: inputs to embed or to rank, in batches of their own."""
