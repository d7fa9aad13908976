"""Promise: the chat templates of published models render exactly as transformers renders them.

The templates: published_templates.py. What transformers makes of them: templates/digests.json,
written by tests/tools/template_digests.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from cllm.api.chat import chat_template
from cllm.api.chat.chat_template import ChatTemplate, TemplateError
from cllm.api.chat.conversation import Conversation
from cllm.api.chat.dialect import dialect_of
from cllm.api.chat.prompt import rendered as prompt_of
from tests.api.published_templates import (
    BOS,
    CONVERSATIONS,
    DIGESTS,
    EOS,
    TOOLS,
    digest,
    source,
    with_text,
)

# What transformers refuses and this server renders: templates that append to a list, need tools
# even where there are none, write a filter's result as JSON, or take arguments as text alone.
RENDERS_MORE = {
    "Cohere2MoE",
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "Kimi-K2-Instruct",
    "Kimi-K2-Thinking",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "llama-cpp-deepseek-r1",
    "meetkai-functionary-medium-v3.2",
}


class FixedDate(datetime):
    """The day of the expectations."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime(2026, 11, 24, 12, 30)


def rendered(template: ChatTemplate, case: dict[str, Any], as_text: bool) -> str | None:
    """The prompt, or None where the template refuses; as_text: arguments as OpenAI sends them."""
    messages = with_text(case["messages"]) if as_text else case["messages"]
    variables = dict(case.get("variables", {}))
    if "tools" in case:
        variables["tools"] = [TOOLS[name] for name in case["tools"]]
    try:
        return template.render(messages, variables, continued=case.get("continued", False))
    except TemplateError:
        return None


@pytest.mark.parametrize("name", DIGESTS["templates"])
def test_a_template_renders_as_transformers_renders_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "datetime", FixedDate)
    template = ChatTemplate(source(name), BOS, EOS)
    wanted = DIGESTS["templates"][name]
    expected = wanted["cases"]
    assert expected.keys() == CONVERSATIONS.keys()
    for case, conversation in CONVERSATIONS.items():
        for as_text in (False, True):
            shown = rendered(template, conversation, as_text)
            found = shown if shown is None else digest(shown)
            # Most templates take objects, to which text is turned; a few take text alone.
            exact = wanted["as text"].get(case, expected[case]) if as_text else expected[case]
            if exact is not None or name not in RENDERS_MORE:
                assert found == exact, (case, as_text, shown)


def test_many_templates_are_there_and_each_case_renders_with_most() -> None:
    templates = DIGESTS["templates"].values()
    assert len(templates) >= 70
    for case in CONVERSATIONS:
        assert sum(each["cases"][case] is not None for each in templates) >= 35, case


@pytest.mark.parametrize("name", [
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use", "GLM-4.7-Flash", "MiniMax-M3",
    "Qwen-Qwen3-0.6B", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "google-gemma-4-31B-it",
])  # fmt: skip
def test_open_thoughts_are_the_start_of_the_turn_and_their_text(name: str) -> None:
    template = ChatTemplate(source(name), BOS, EOS)
    begin = dialect_of(template).think[0].rstrip()
    user = {"role": "user", "content": "Hi"}
    begun = {"role": "assistant", "reasoning_content": "Well, I"}
    turn = prompt_of(template, Conversation([user], reasoning=True))
    open_ = prompt_of(template, Conversation([user, begun], reasoning=True, continued=True))
    assert open_.startswith(turn)
    assert open_.endswith("Well, I")
    assert (turn.rstrip() + open_.removeprefix(turn)[: -len("Well, I")]).rstrip().endswith(begin)
