"""Speculative decoding: drafts from the text or from a draft model, and their length."""
