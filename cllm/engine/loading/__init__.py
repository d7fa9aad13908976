"""From a GGUF file to a model that is ready: headers, checks, contexts, the draft model."""
