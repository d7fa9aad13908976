"""The formats in which models write tool calls and thoughts; one file each."""

from __future__ import annotations

from cllm.api.formats import (
    deepseek,
    gemma,
    generic,
    gpt_oss,
    hermes,
    llama3,
    mistral,
    pythonic,
    qwen3_coder,
)
from cllm.api.formats.format import Format

# The first that fits applies; particular formats come first, and the last one fits all.
FORMATS = (
    gpt_oss.FORMAT,
    gemma.GEMMA_4,
    gemma.FUNCTION_GEMMA,
    deepseek.PLAIN,
    deepseek.FENCED,
    mistral.OLD,
    mistral.NEW,
    qwen3_coder.FORMAT,
    hermes.FORMAT,
    pythonic.FORMAT,
    llama3.FORMAT,
    generic.FORMAT,
)


def detect(source: str) -> Format:
    """The format of a model with this chat template."""
    return next(format for format in FORMATS if format.fits(source))


__all__ = ["FORMATS", "Format", "detect"]
