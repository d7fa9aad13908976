"""Continuous-batching inference on llama.cpp: knows tokens and sequences, and nothing of HTTP."""
