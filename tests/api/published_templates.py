"""Chat templates of published models, as llama.cpp collects them; scripts/test.sh fetches them.

They are in the source distribution of llama-cpp-python; scripts/test.sh unpacks them into the
user's cache. templates/digests.json names the version and has digests of each template and of
what transformers renders with it; tests/tools/template_digests.py writes that file.
"""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from cllm.engine.machine.user_cache import user_cache

FOLDER = Path(__file__).parent / "templates"


def read(name: str) -> Any:
    """One of the JSON files next to this one."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


CONVERSATIONS: dict[str, Any] = read("conversations.json")
TOOLS: dict[str, Any] = read("tools.json")
DIGESTS: dict[str, Any] = read("digests.json")
PLACE = user_cache() / f"templates-{DIGESTS['llama-cpp-python']}"
# The same for all templates, which only put them where their own models' tokens would stand.
BOS, EOS = "<s>", "</s>"


def digest(text: str) -> str:
    """The beginning of the SHA-256 of a text: 64 bits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the arguments of calls as JSON text, as OpenAI's API has them."""
    messages = deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return messages


def source(name: str) -> str:
    """The template in NAME.jinja; skips the test where it was not fetched."""
    path = PLACE / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"{path} is not there; scripts/test.sh fetches it")
    text = path.read_text(encoding="utf-8")
    assert digest(text) == DIGESTS["templates"][name]["source"], f"{path} is another version"
    return text
