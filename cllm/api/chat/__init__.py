"""Conversations, whatever API they come from: to a prompt, and the model's text to events.

An API's own part is small: its request to a `Conversation`, events to its JSON, its error envelope.
"""

from __future__ import annotations

from cllm.api.chat.conversation import Conversation, Tool
from cllm.api.chat.events import (
    CallArguments,
    CallBegin,
    CallEnd,
    Event,
    Parser,
    Reasoning,
    Text,
)
from cllm.api.chat.prepare import Prepared, prepare, prompt_text
from cllm.api.chat.thoughts import Thoughts

__all__ = [
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "Conversation",
    "Event",
    "Parser",
    "Prepared",
    "Reasoning",
    "Text",
    "Thoughts",
    "Tool",
    "prepare",
    "prompt_text",
]
