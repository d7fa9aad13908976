"""A last message with thoughts and no answer: the thoughts are continued."""

from __future__ import annotations

from typing import Any

import pytest

from cllm.api import ApiSettings
from cllm.api.chat.chat_template import CHATML
from cllm.engine import Engine
from tests.api.api_client import serving
from tests.api.test_llama_fields import HELLO, answered

OPENS = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")


@pytest.mark.parametrize("template", [CHATML, OPENS], ids=["the model", "the template"])
def test_thoughts_without_an_answer_are_continued(engine: Engine, template: str) -> None:
    """Whether the model or the template writes the mark that begins them."""
    begun: list[dict[str, Any]] = [
        *HELLO,
        {"role": "assistant", "reasoning_content": "Well, <|im_end|> I"},
    ]
    with serving(engine, ApiSettings(chat_template=template)) as live:
        prompt = answered(live, "/apply-template", {"messages": begun})["prompt"]
        assert prompt.endswith("<|im_start|>assistant\n<think>\nWell, <|im_end|> I")
        assert prompt.count("assistant") == prompt.count("<think>") == 1
        body = {"messages": begun, "max_tokens": 5, "ignore_eos": True}
        message = answered(live, "/v1/chat/completions", body)["choices"][0]["message"]
        assert message["reasoning_content"] and not message["content"]
        # With text the message is continued there, as before.
        begun[-1]["content"] = "So"
        assert answered(live, "/apply-template", {"messages": begun})["prompt"].endswith("So")
