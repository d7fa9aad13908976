"""Promise: a forced call is made, streamed and answered in the format of the model's template.

One published template for each kind of format, on a server of its own; all share one engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from cllm.api import ApiSettings
from cllm.engine import Engine
from cllm.models import demo_path
from tests.api.api_client import Live, serving
from tests.api.published_templates import source

PARAMETERS = {
    "type": "object",
    "properties": {
        "user-id": {"type": "string", "enum": ["Rome", "Bern"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "sunny": {"type": "boolean"},
    },
    "required": ["user-id", "days", "sunny"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get-weather", "description": "The weather", "parameters": PARAMETERS}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Is it warm?"}],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": "required",
    "reasoning_effort": "none",
    "parallel_tool_calls": False,
    "temperature": 0,
    "reproducible": True,  # a prefix that is cached may change a sum's last bits
    "max_tokens": 400,
}
TEMPLATES = [
    "Apertus-8B-Instruct",  # the name as the key of a JSON object
    "unsloth-Apriel-1.5",  # a list in JSON
    "ibm-granite-granite-3.3-2B-Instruct",  # the same without a mark at the end
    "MiniMax-M1",  # JSON on lines
    "Qwen-Qwen2.5-7B-Instruct",  # JSON, each call between marks
    "CohereForAI-c4ai-command-r-plus-tool_use",  # JSON in a fence
    "meta-llama-Llama-3.1-8B-Instruct",  # JSON without marks
    "moonshotai-Kimi-K2",  # a name, then JSON
    "deepseek-ai-DeepSeek-V3.1",  # the same; the template does not describe tools
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",  # the call begins in the prompt
    "Mistral-Small-3.2-24B-Instruct-2506",
    "Qwen3-Coder",  # marks around every argument
    "ByteDance-Seed-OSS",
    "GLM-4.6",
    "deepseek-ai-DeepSeek-V3.2",  # with the kind of a value in its mark
    "Kimi-K3",
    "MiniMax-M3",  # marks in marks
    "openbmb-MiniCPM5-1B",
    "LFM2.5-8B-A1B",  # Python
    "google-gemma-4-31B-it",
    "google-gemma-2-2b-it",  # neither tools nor system messages
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(demo_path(), parallel=4) as engine:
        yield engine


def completed(live: Live, body: dict[str, Any]) -> Any:
    response = live.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def streamed(live: Live, body: dict[str, Any]) -> tuple[str, str]:
    """The arguments of the streamed call, and all text next to it."""
    arguments, said = "", ""
    with live.post("/v1/chat/completions", {**body, "stream": True}, stream=True) as response:
        for line in response.iter_lines():
            if line.startswith(b"data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                said += delta.get("content") or ""
                for call in delta.get("tool_calls", ()):
                    arguments += call["function"]["arguments"]
    return arguments, said


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_forced_call_is_read_in_the_templates_own_format(name: str, engine: Engine) -> None:
    settings = ApiSettings(chat_template=source(name))
    with serving(engine, settings) as live:
        choice = completed(live, ASKED)
        assert choice["finish_reason"] == "tool_calls", choice
        message = choice["message"]
        assert message["content"] is None
        (call,) = message["tool_calls"]
        assert call["function"]["name"] == "get-weather"
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, PARAMETERS)
        assert streamed(live, ASKED) == (call["function"]["arguments"], "")
        # The call goes back with its result, and with arguments that a limit cut.
        for text in (call["function"]["arguments"], '{"user-id": "Ro'):
            given = {**call, "function": {**call["function"], "arguments": text}}
            result = {"role": "tool", "tool_call_id": call["id"], "content": "20 degrees"}
            history = [*ASKED["messages"], {**message, "tool_calls": [given]}, result]
            body = {**ASKED, "messages": history, "tool_choice": "auto", "max_tokens": 1}
            completed(live, body)
        # A limit at any token leaves no markup.
        for limit in range(1, 40, 6):
            cut = completed(live, {**ASKED, "max_tokens": limit})
            assert not cut["message"]["content"], cut
