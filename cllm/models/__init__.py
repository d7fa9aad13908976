"""The model that comes with the package: short stories in English and simple Chinese."""

from __future__ import annotations

from pathlib import Path

FILE_NAME = "cllm-stories-q8_0.gguf"


def demo_path() -> Path:
    """The built-in model's GGUF file.

    Raises:
        FileNotFoundError: the package was installed without its data.
    """
    path = Path(__file__).with_name(FILE_NAME)
    if not path.is_file():
        raise FileNotFoundError(
            f"the built-in model is missing: {path}; install cllm again, or give a model's path"
        )
    return path


__all__ = ["demo_path"]
