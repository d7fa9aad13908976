"""How much context, how many threads and which cache layout suit a model and a machine."""
