"""The OpenAI endpoints: models, completions, chat completions and responses.

Source: the OpenAI API reference. Field names and their order in events are its own.
"""

from __future__ import annotations

from cllm.api.openai.chat import ChatCompletions
from cllm.api.openai.completions import Completions
from cllm.api.openai.errors import error_body, refused
from cllm.api.openai.models import Models
from cllm.api.openai.responses import Responses
from cllm.api.openai.timing import timed

__all__ = [
    "ChatCompletions",
    "Completions",
    "Models",
    "Responses",
    "error_body",
    "refused",
    "timed",
]
