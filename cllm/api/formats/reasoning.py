"""Thoughts before an answer, between two markers.

A template may open them at the prompt's end; the text then begins within them.
"""

from __future__ import annotations

from cllm.api.chat.events import Reasoning
from cllm.api.formats.reader import Reader, Steps


def read_reasoning(reader: Reader, think: tuple[str, str], opened: bool) -> Steps[None]:
    """Read the thoughts, if any, and the white space around them."""
    begin, end = think[0].rstrip(), think[1]
    space = yield from reader.space()
    if (yield from reader.take(begin)):
        opened = True
    if not opened:
        if (yield from reader.take(end)):  # the prompt left the thoughts open, and there are none
            yield from reader.space()
        else:
            reader.text = space + reader.text
        return
    yield from reader.space()
    yield from reader.pass_until((end,), Reasoning)
    yield from reader.space()
