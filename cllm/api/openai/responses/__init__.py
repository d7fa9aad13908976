"""``/v1/responses``, without state: nothing is stored, so every request brings its whole input."""

from __future__ import annotations

from cllm.api.openai.responses.endpoint import Responses

__all__ = ["Responses"]
