"""Tokens to text: whole characters, and stop strings."""
