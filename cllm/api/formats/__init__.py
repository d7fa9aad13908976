"""The formats in which models write tool calls and thoughts."""

from __future__ import annotations

from cllm.api.formats.families import FORMATS, GENERIC
from cllm.api.formats.format import Format

__all__ = ["FORMATS", "GENERIC", "Format"]
