"""Context size, thread counts and cache layout for a model and a machine."""
