"""cLLM's own API: generate, encode, decode, benchmark, health, the model."""
