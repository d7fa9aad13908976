"""Tokens to text: whole characters, and where a stop string ends a text."""
