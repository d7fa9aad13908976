"""The Anthropic endpoints: messages and the count of their tokens.

Source: the Anthropic API reference. Field names and the order of events are its own.
"""

from __future__ import annotations

from cllm.api.anthropic.errors import error_body
from cllm.api.anthropic.messages import Messages

__all__ = ["Messages", "error_body"]
