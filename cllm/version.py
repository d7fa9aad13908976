"""The version of cLLM, importable without dependencies."""

__version__ = "0.1.0"
