"""The chat templates that are built into llama.cpp, by name; they write texts of roles only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface


def names() -> list[str]:
    """The names, such as "chatml"."""
    count = C.llama_chat_builtin_templates(None, 0)
    found = (ctypes.c_char_p * count)()
    C.llama_chat_builtin_templates(found, count)
    return sorted(name.decode() for name in found if name)


def render(name: str, messages: Sequence[tuple[str, str]], opened: bool) -> str:
    """Messages, as (role, text), in the template of this name.

    opened: the prompt ends with the start of the assistant's turn. Raises ValueError if the
    template cannot be applied.
    """
    encoded = [(role.encode(), text.encode("utf-8", "replace")) for role, text in messages]
    array = (C.llama_chat_message * len(encoded))(
        *(C.llama_chat_message(role=role, content=text) for role, text in encoded)
    )
    size = 1024 + 2 * sum(len(role) + len(text) for role, text in encoded)
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = C.llama_chat_apply_template(
            name.encode(), array, len(encoded), opened, buffer, size
        )
        if length < 0:
            raise ValueError(f"the built-in template {name} cannot be applied")
        if length <= size:
            return buffer.raw[:length].decode("utf-8", "replace")
        size = length
