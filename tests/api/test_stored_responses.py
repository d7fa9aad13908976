"""Promises of stored responses: they continue conversations, stay private, and are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from cllm.api import ApiSettings
from cllm.api.openai.responses import ResponseStore
from cllm.api.openai.responses.store import Stored
from tests.api.api_client import Live, eventually, idle, serving

MODEL = "cllm-stories-q8_0"
FOX = "Tell me a story about a fox and a lantern."


@pytest.fixture
def client(stories: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=stories.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def made(client: Any, **asked: Any) -> Any:
    """A short answer."""
    return client.responses.create(
        **{"model": MODEL, "temperature": 0, "max_output_tokens": 8, **asked}
    )


def test_a_response_continues_another(client: Any) -> None:
    first = made(client, input=FOX)
    second = made(client, input="Who is in it?", previous_response_id=first.id)
    third = made(client, input="And then?", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    whole = made(
        client,
        store=False,
        input=[
            {"role": "user", "content": FOX},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "Who is in it?"},
            {"role": "assistant", "content": second.output_text},
            {"role": "user", "content": "And then?"},
        ],
    )
    assert third.output_text == whole.output_text
    assert third.usage.input_tokens == whole.usage.input_tokens
    counted = client.responses.input_tokens.count(
        model=MODEL, input="And then?", previous_response_id=second.id
    )
    assert counted.input_tokens == third.usage.input_tokens


def test_instructions_are_not_inherited(client: Any) -> None:
    told = made(client, input=FOX, instructions="You tell long stories about animals.")
    plain = made(client, input=FOX)
    after_told = made(client, input="On.", previous_response_id=told.id)
    after_plain = made(client, input="On.", previous_response_id=plain.id)
    assert told.usage.input_tokens > plain.usage.input_tokens
    difference = after_told.usage.input_tokens - after_plain.usage.input_tokens
    said = told.usage.output_tokens - plain.usage.output_tokens
    assert difference - said < told.usage.input_tokens - plain.usage.input_tokens
    assert after_told.instructions is None


def test_a_call_and_its_output_continue_a_response(client: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tool = {"type": "function", "name": "count", "parameters": schema}
    called = made(
        client, input=FOX, tools=[tool], tool_choice="required", parallel_tool_calls=False,
        max_output_tokens=100,
    )  # fmt: skip
    (call,) = [item for item in called.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4"}
    answer = made(client, input=[result], tools=[tool], previous_response_id=called.id)
    listed = client.responses.input_items.list(answer.id, order="asc").data
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]
    assert listed[1].arguments == call.arguments


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_read_and_deleted(client: Any, stream: bool) -> None:
    if stream:
        events = list(made(client, input=FOX, stream=True, top_logprobs=1))
        answer = events[-1].response
    else:
        answer = made(client, input=FOX, metadata={"of": "fox"})
    assert client.responses.retrieve(answer.id) == answer
    client.responses.delete(answer.id)
    for use in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match=answer.id):
            use(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(answer.id)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        made(client, input="On.", previous_response_id=answer.id)


def test_what_a_deleted_response_said_stays_in_those_that_continue_it(client: Any) -> None:
    first = made(client, input=FOX)
    second = made(client, input="On.", previous_response_id=first.id)
    client.responses.delete(first.id)
    third = made(client, input="On.", previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_input_items_come_in_pages(client: Any) -> None:
    texts = ["one", "two", "three", "four", "five"]
    answer = made(client, input=[{"role": "user", "content": text} for text in texts])
    listed = client.responses.input_items.list(answer.id, limit=2)
    assert listed.has_more and len(listed.data) == 2
    assert [item.content[0].text for item in listed] == texts[::-1]
    forward = client.responses.input_items.list(answer.id, order="asc")
    assert [item.content[0].text for item in forward] == texts
    assert len({item.id for item in forward}) == len(texts)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=msg_1"])
def test_a_wrong_page_is_refused_by_name(client: Any, stories: Live, query: str) -> None:
    answer = made(client, input=FOX)
    response = stories.get(f"/v1/responses/{answer.id}/input_items?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == query.partition("=")[0]


def test_an_item_is_referred_to_by_its_id(client: Any) -> None:
    first = made(client, input=FOX)
    (message,) = first.output
    by_id = made(
        client,
        input=[
            {"role": "user", "content": FOX},
            {"type": "item_reference", "id": message.id},
            {"role": "user", "content": "On."},
        ],
    )
    chained = made(client, input="On.", previous_response_id=first.id)
    assert by_id.usage.input_tokens == chained.usage.input_tokens
    assert by_id.output_text == chained.output_text


def test_a_response_with_store_false_is_not_stored(client: Any) -> None:
    answer = made(client, input=FOX, store=False)
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_without_memory_none_is_stored(stories: Live) -> None:
    with serving(stories.engine, ApiSettings(response_memory=0)) as live:
        answer = live.post("/v1/responses", {"input": FOX, "max_output_tokens": 2}).json()
        assert answer["store"] is False
        assert live.get(f"/v1/responses/{answer['id']}").status_code == 404


def test_each_key_has_its_own_responses(stories: Live) -> None:
    with serving(stories.engine, ApiSettings(api_keys=("sk-one", "sk-two"))) as live:
        one, two = ({"headers": {"x-api-key": key}} for key in ("sk-one", "sk-two"))
        body = {"input": FOX, "max_output_tokens": 2}
        answer = live.post("/v1/responses", body, **one).json()
        path = f"/v1/responses/{answer['id']}"
        assert live.get(path, **one).json() == answer
        assert live.get(path, **two).status_code == 404
        deleted = live.session.delete(live.url + path, timeout=60, headers=two["headers"])
        assert deleted.status_code == 404
        follow = {**body, "previous_response_id": answer["id"]}
        assert live.post("/v1/responses", follow, **two).status_code == 400
        refer = {**body, "input": [{"type": "item_reference", "id": answer["output"][0]["id"]}]}
        assert live.post("/v1/responses", refer, **two).status_code == 400
        assert live.post("/v1/responses", follow, **one).status_code == 200


def stored(number: int, before: Stored | None = None, size: int = 1000) -> Stored:
    items = json.dumps([{"role": "user", "content": f"{number}" + "x" * size}]).encode()
    output = json.dumps({"output": [{"role": "assistant", "content": "yes"}]}).encode()
    return Stored(f"resp_{number}", items, output, before)


def test_the_oldest_go_where_there_is_no_room() -> None:
    size = stored(0).size
    store = ResponseStore(most_bytes=3 * size + 100)
    for number in range(10):
        store.put("a", stored(number))
        kept = [n for n in range(10) if store.get("a", f"resp_{n}") is not None]
        assert kept == list(range(max(0, number - 2), number + 1))
    few = ResponseStore(most_bytes=2**30, most=2)
    for number in range(5):
        few.put("a", stored(number))
    assert [n for n in range(5) if few.get("a", f"resp_{n}") is not None] == [3, 4]


def test_a_tenant_cannot_displace_anothers_smaller_share() -> None:
    store = ResponseStore(most_bytes=4 * stored(0).size + 100)
    store.put("small", stored(0))
    for number in range(20):
        store.put("large", stored(number))
    assert store.get("small", "resp_0") is not None
    assert store.get("large", "resp_19") is not None


def test_a_kept_response_keeps_what_it_continues() -> None:
    store = ResponseStore(most_bytes=2**20, most=2)
    before = None
    for number in range(6):
        before = stored(number, before)
        store.put("a", before)
    assert store.get("a", "resp_0") is None
    last = store.get("a", "resp_5")
    assert last is not None
    texts = [str(item.content)[:1] for item in last.items() if item.role == "user"]
    assert texts == list("012345")


def test_all_bytes_of_a_long_conversation_count() -> None:
    size = stored(0).size
    store = ResponseStore(most_bytes=5 * size + 100)
    before = None
    for number in range(6):  # the first goes, and still counts: so do all that continue it
        before = stored(number, before)
        store.put("a", before)
    assert not [n for n in range(6) if store.get("a", f"resp_{n}") is not None]
    store.put("a", stored(6, before))  # what it continues counts again
    assert store.get("a", "resp_6") is None
    for number in range(7, 12):
        store.put("a", stored(number))
    assert all(store.get("a", f"resp_{n}") is not None for n in range(7, 12))


def test_a_response_larger_than_the_memory_is_not_kept() -> None:
    store = ResponseStore(most_bytes=500)
    store.put("a", stored(0))
    assert store.get("a", "resp_0") is None
    assert not store.delete("a", "resp_0")


def test_truncation_drops_the_oldest_and_never_the_instructions(client: Any) -> None:
    filler = "The owl counted the stars above the hill. " * 12
    items: list[dict[str, Any]] = [{"role": "user", "content": "The first words."}]
    for _ in range(20):
        items += [
            {"role": "assistant", "content": filler},
            {"role": "user", "content": filler},
        ]
    items.append({"role": "user", "content": FOX})
    with pytest.raises(openai.BadRequestError, match="too long"):
        made(client, input=items)
    with pytest.raises(openai.BadRequestError, match="too long"):
        made(client, input=items, truncation="disabled")
    plain = made(client, input=items, truncation="auto")
    assert plain.truncation == "auto"
    told = made(client, input=items, truncation="auto", instructions="Tell a story. " * 60)
    context = 2048
    for answer in (plain, told):
        assert context // 2 < answer.usage.input_tokens <= context - context // 8
    short = made(client, input=FOX, instructions="Tell a story. " * 60, truncation="auto")
    assert short.usage.input_tokens > 200  # the instructions alone
    one = "word " * 3000
    with pytest.raises(openai.BadRequestError, match="too long"):
        made(client, input=one, truncation="auto")


def test_truncation_drops_a_call_with_its_result(client: Any) -> None:
    items: list[dict[str, Any]] = [{"role": "user", "content": "Count."}]
    for number in range(60):
        id = f"call_{number}"
        items += [
            {"type": "function_call", "call_id": id, "name": "count", "arguments": "{}"},
            {"type": "function_call_output", "call_id": id, "output": "many stars " * 12},
        ]
    answer = made(client, input=items, truncation="auto")
    assert 1024 < answer.usage.input_tokens <= 1792


def test_logprobs_of_the_text(client: Any) -> None:
    include: Any = ["message.output_text.logprobs"]
    whole = made(client, input=FOX, include=include, top_logprobs=2)
    (part,) = whole.output[0].content
    assert "".join(each.token for each in part.logprobs) == part.text
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in part.logprobs)
    events = list(made(client, input=FOX, include=include, top_logprobs=2, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    shown = [each.token for event in deltas for each in event.logprobs]
    assert shown == [each.token for each in part.logprobs]
    assert events[-1].response.output[0].content[0].logprobs == part.logprobs
    without = made(client, input=FOX)
    assert without.output[0].content[0].logprobs == []
