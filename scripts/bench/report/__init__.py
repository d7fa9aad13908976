"""Comparisons of results and their pictures."""
