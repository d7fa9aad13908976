"""Programs that are not installed with cLLM: the benchmarks, the making of the built-in model."""
