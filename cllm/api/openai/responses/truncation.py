"""``truncation: "auto"``: drops the oldest messages of a conversation until its prompt fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cllm.api.chat.conversation import Conversation
from cllm.api.chat.prepare import Prepared
from cllm.engine import PromptTooLong

_FOR_THE_ANSWER = 8  # an eighth of the context is left for the answer


def fitted(
    conversation: Conversation, prepare: Callable[[Conversation], Prepared], ctx_size: int
) -> Prepared:
    """The conversation with as many of its newest messages as fit, and all system messages.

    Raises PromptTooLong if the last message alone does not fit, and what `prepare` raises.
    """
    messages = conversation.messages
    most = ctx_size - ctx_size // _FOR_THE_ANSWER

    def cut_at(cut: int) -> Prepared:
        kept = [each for each in messages[:cut] if each["role"] == "system"]
        return prepare(replace(conversation, messages=[*kept, *messages[cut:]]))

    def fitting(cut: int) -> Prepared | None:
        try:
            prepared = cut_at(cut)
        except PromptTooLong:
            return None
        return prepared if len(prepared.tokens) <= most else None

    whole = fitting(0)
    if whole is not None:
        return whole
    cuts = _cuts(messages)
    found, low, high = None, 0, len(cuts)
    while low < high:  # the fewest that must go
        middle = (low + high) // 2
        prepared = fitting(cuts[middle])
        if prepared is None:
            low = middle + 1
        else:
            found, high = prepared, middle
    return found or cut_at(cuts[-1] if cuts else 0)


def _cuts(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where a conversation may begin, the earliest first.

    At a user's message; within the last turn at any message except a call's result, whose call
    would be gone.
    """
    turns = [n for n, each in enumerate(messages) if n and each["role"] == "user"]
    last = turns[-1] if turns else 0
    rest = range(last + 1, len(messages))
    return turns + [n for n in rest if messages[n]["role"] not in ("tool", "system")]
