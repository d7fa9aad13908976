"""The benchmarks: `python -m scripts.bench` lists them; docs/benchmarks.md has their results."""
