"""From a GGUF file to a loaded model: headers, checks, contexts, the draft model."""
