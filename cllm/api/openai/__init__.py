"""The OpenAI endpoints: models, completions, chat completions and responses.

Source: the OpenAI API reference. Field names and their order in events are its own.
"""

from __future__ import annotations

from cllm.api.openai.errors import refused

__all__ = ["refused"]
