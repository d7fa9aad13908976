"""The tokenizer of a model for benchmarks: another model's, or one of made-up words."""

from __future__ import annotations

import itertools
import string
from pathlib import Path
from typing import Any

import gguf

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Vocabulary:
    """A tokenizer as GGUF keeps it: (key, value, type, type of the elements) of each entry."""

    def __init__(
        self, entries: list[tuple[str, Any, gguf.GGUFValueType, gguf.GGUFValueType | None]]
    ) -> None:
        self.entries = entries
        self._size = next(len(e[1]) for e in entries if e[0] == gguf.Keys.Tokenizer.LIST)

    def __len__(self) -> int:
        return self._size


def copy_vocabulary(path: Path) -> Vocabulary:
    """Everything about the tokenizer in the file at `path`.

    Raises OSError or ValueError if it is no GGUF or has no list of tokens.
    """
    entries = []
    for field in gguf.GGUFReader(path).fields.values():
        if field.name.startswith("tokenizer."):
            element_type = field.types[1] if len(field.types) > 1 else None
            entries.append((field.name, field.contents(), field.types[0], element_type))
    if not any(name == gguf.Keys.Tokenizer.LIST for name, *_ in entries):
        raise ValueError(f"{path} has no list of tokens")
    return Vocabulary(entries)


def byte_spelling() -> list[str]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onward.

    Source: bytes_to_unicode in openai/gpt-2, src/encoder.py.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spelling = []
    spare = 0x100
    for byte in range(256):
        if byte in printable:
            spelling.append(chr(byte))
        else:
            spelling.append(chr(spare))
            spare += 1
    return spelling


def synthetic_vocabulary(size: int) -> Vocabulary:
    """A byte-level BPE vocabulary of `size` tokens: the bytes, then ever longer strings of
    letters, each with the merge that makes it. Any text can be written in it.
    """
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = byte_spelling()
    merges = []
    space = tokens[ord(" ")]
    letters = string.ascii_lowercase
    # Longest last: a merge may only use existing tokens.
    longer = (
        "".join(word)
        for length in itertools.count(1)
        for word in itertools.product(space + letters, *[letters] * length)
    )
    for token in itertools.islice(longer, size - len(tokens) - len(control)):
        tokens.append(token)
        merges.append(f"{token[:-1]} {token[-1]}")
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(control)
    tokens += control

    names, value = gguf.Keys.Tokenizer, gguf.GGUFValueType
    return Vocabulary(
        [
            (names.MODEL, "gpt2", value.STRING, None),  # llama.cpp's name for byte-level BPE
            (names.PRE, "qwen2", value.STRING, None),
            (names.LIST, tokens, value.ARRAY, value.STRING),
            (names.TOKEN_TYPE, [int(kind) for kind in kinds], value.ARRAY, value.INT32),
            (names.MERGES, merges, value.ARRAY, value.STRING),
            (names.BOS_ID, size - 3, value.UINT32, None),
            (names.EOS_ID, size - 1, value.UINT32, None),
            (names.ADD_BOS, False, value.BOOL, None),
            (names.CHAT_TEMPLATE, CHAT_TEMPLATE, value.STRING, None),
        ]
    )
