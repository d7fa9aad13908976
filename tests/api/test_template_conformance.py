"""Promise: the chat templates of published models render exactly as transformers renders them.

The templates and where they are from: tests/api/templates/models.json. What transformers makes of
them is written by tests/tools/template_expectations.py.
"""

from __future__ import annotations

import copy
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cllm.api import chat_template
from cllm.api.chat_template import ChatTemplate, TemplateError

TEMPLATES = Path(__file__).parent / "templates"


def read(name: str) -> Any:
    return json.loads((TEMPLATES / name).read_text(encoding="utf-8"))


CONVERSATIONS: dict[str, Any] = read("conversations.json")
TOOLS = read("tools.json")
MODELS: dict[str, dict[str, str]] = read("models.json")


class FixedDate(datetime):
    """The day of the expectations."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime(2026, 11, 24, 12, 30)


def rendered(template: ChatTemplate, case: dict[str, Any], as_text: bool) -> str | None:
    """The prompt, or None where the template refuses; as_text: arguments as OpenAI sends them."""
    messages = copy.deepcopy(case["messages"])
    for message in messages:
        for call in message.get("tool_calls", ()) if as_text else ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    variables = dict(case.get("variables", {}))
    if "tools" in case:
        variables["tools"] = [TOOLS[name] for name in case["tools"]]
    try:
        return template.render(messages, variables, continued=case.get("continued", False))
    except TemplateError:
        return None


@pytest.mark.parametrize("name", MODELS)
def test_a_template_renders_as_transformers_renders_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "datetime", FixedDate)
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, MODELS[name]["bos_token"], MODELS[name]["eos_token"])
    expected = read(f"{name}.json")["cases"]
    assert expected.keys() == CONVERSATIONS.keys()
    for case, conversation in CONVERSATIONS.items():
        for as_text in (False, True):
            shown = rendered(template, conversation, as_text)
            assert shown == expected[case].get("text"), case


def test_ten_families_are_there_and_each_case_renders_somewhere() -> None:
    assert len({model["model"].split("/")[0] for model in MODELS.values()}) >= 10
    found = [read(f"{name}.json")["cases"] for name in MODELS]
    for case in CONVERSATIONS:
        assert sum("text" in each[case] for each in found) >= 5, case
