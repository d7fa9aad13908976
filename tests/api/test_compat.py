"""Third-party clients need only the address: LangChain and LiteLLM, as OpenAI's and Ollama's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from cllm.engine import Engine
from tests.api.api_client import Live, serving
from tests.embedding_models import WIDTH, bert

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its prices come from the network
langchain = pytest.importorskip("langchain_openai")
langchain_ollama = pytest.importorskip("langchain_ollama")
litellm = pytest.importorskip("litellm")

# LiteLLM's own types, as pydantic finds them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic")

MODEL = "cllm-stories-q8_0"
FOX = "Tell me a story about a fox and a lantern."
TALK = [{"role": "user", "content": FOX}]
BOOK: dict[str, Any] = {
    "title": "print_book",
    "description": "Print a book.",
    "type": "object",
    "properties": {
        "hero": {"type": "string", "enum": ["fox", "owl"]},
        "pages": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["hero", "pages"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "print_book", "parameters": BOOK}}
FORCED = {"type": "function", "function": {"name": "print_book"}}


@pytest.fixture(scope="module")
def embedding() -> Iterator[Live]:
    with Engine.load(bert("mean"), flash_attn="off") as engine, serving(engine) as live:
        yield live


def is_book(value: Any) -> bool:
    return set(value) == {"hero", "pages"} and value["hero"] in ("fox", "owl")


def model(stories: Live, **more: Any) -> Any:
    return langchain.ChatOpenAI(
        base_url=stories.url + "/v1", api_key="none", model=MODEL, temperature=0, **more
    )


def test_langchain_asks_and_streams(stories: Live) -> None:
    chat = model(stories, max_tokens=40)
    answer = chat.invoke(FOX)
    assert "fox" in answer.content and answer.usage_metadata["output_tokens"] == 40
    pieces = [chunk.content for chunk in chat.stream(FOX)]
    assert "".join(pieces) == answer.content and len(pieces) > 5


def test_langchain_uses_responses(stories: Live) -> None:
    chat = model(stories, max_tokens=40, use_responses_api=True)
    assert "fox" in chat.invoke(FOX).text
    assert "fox" in "".join(chunk.text for chunk in chat.stream(FOX))


def test_langchain_calls_a_tool(stories: Live) -> None:
    chat = model(stories).bind_tools([BOOK], tool_choice="print_book", parallel_tool_calls=False)
    (call,) = chat.invoke(FOX).tool_calls
    assert call["name"] == "print_book" and is_book(call["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_output(stories: Live, method: str) -> None:
    chat = model(stories).with_structured_output(BOOK, method=method)
    assert is_book(chat.invoke(FOX))


def test_langchain_embeds(embedding: Live) -> None:
    vectors = langchain.OpenAIEmbeddings(
        base_url=embedding.url + "/v1", api_key="none", model="any",
        check_embedding_ctx_length=False,
    ).embed_documents(["the cat", "a dog"])  # fmt: skip
    assert [len(vector) for vector in vectors] == [WIDTH, WIDTH]


@pytest.fixture(params=["openai", "anthropic"])
def target(stories: Live, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where LiteLLM finds each API."""
    base = stories.url + ("/v1" if request.param == "openai" else "")
    return {"model": f"{request.param}/{MODEL}", "api_base": base, "api_key": "none"}


def test_litellm_asks_and_streams(target: dict[str, Any]) -> None:
    asked = {**target, "messages": TALK, "max_tokens": 40, "temperature": 0}
    answer = litellm.completion(**asked)
    text = answer.choices[0].message.content
    assert "fox" in text and answer.usage.completion_tokens == 40
    pieces = [chunk.choices[0].delta.content for chunk in litellm.completion(**asked, stream=True)]
    assert "".join(piece or "" for piece in pieces) == text


def test_litellm_calls_a_tool(target: dict[str, Any]) -> None:
    answer = litellm.completion(
        **target, messages=TALK, tools=[TOOL], tool_choice=FORCED, max_tokens=300
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "print_book" and is_book(json.loads(call.function.arguments))


def test_litellm_gets_structured_output(target: dict[str, Any]) -> None:
    schema = {"name": "book", "schema": BOOK, "strict": True}
    answer = litellm.completion(
        **target, messages=TALK, max_tokens=300,
        response_format={"type": "json_schema", "json_schema": schema},
    )  # fmt: skip
    assert is_book(json.loads(answer.choices[0].message.content))


def test_litellm_embeds(embedding: Live) -> None:
    answer = litellm.embedding(
        model="openai/any", input=["the cat"], api_base=embedding.url + "/v1", api_key="none"
    )
    assert len(answer.data[0]["embedding"]) == WIDTH


def ollama_chat(stories: Live, **more: Any) -> Any:
    return langchain_ollama.ChatOllama(
        base_url=stories.url, model=MODEL, temperature=0, num_predict=40, **more
    )


def test_langchain_speaks_ollama(stories: Live) -> None:
    chat = ollama_chat(stories, validate_model_on_init=True)
    answer = chat.invoke(FOX)
    assert "fox" in answer.content and answer.usage_metadata["output_tokens"] == 40
    assert "".join(part.content for part in chat.stream(FOX)) == answer.content
    assert is_book(ollama_chat(stories, format=BOOK).with_structured_output(BOOK).invoke(FOX))


def test_litellm_speaks_ollama(stories: Live) -> None:
    asked = {"model": f"ollama_chat/{MODEL}", "api_base": stories.url, "temperature": 0}
    answer = litellm.completion(messages=TALK, max_tokens=40, **asked)
    text = answer.choices[0].message.content
    assert "fox" in text
    parts = litellm.completion(messages=TALK, max_tokens=40, stream=True, **asked)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    schema = {"type": "json_schema", "json_schema": {"name": "book", "schema": BOOK}}
    book = litellm.completion(messages=TALK, response_format=schema, **asked)
    assert is_book(json.loads(book.choices[0].message.content))
