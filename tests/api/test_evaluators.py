"""What evaluators need: log-probabilities of echoed prompts, the tokenizer, the best of some."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.api_client import Live, eventually, idle

STORY = "Once upon a time there was a fox"
PATH = "/v1/completions"


@pytest.fixture
def live(stories: Live) -> Iterator[Live]:
    yield stories
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def asked(live: Live, path: str = PATH, **body: Any) -> Any:
    response = live.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def one(live: Live, **body: Any) -> Any:
    (choice,) = asked(live, **{"prompt": STORY, "temperature": 0, **body})["choices"]
    return choice


def test_an_echoed_prompt_has_its_log_probabilities(live: Live) -> None:
    choice = one(live, echo=True, logprobs=2, max_tokens=3)
    logprobs, prompt = choice["logprobs"], live.engine.tokenize(STORY)
    assert choice["text"].startswith(STORY)
    assert {len(values) for values in logprobs.values()} == {len(prompt) + 3}
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    for token, value, top in zip(
        logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:],
        strict=True,
    ):  # fmt: skip
        assert top[token] == value <= 0
        assert len(top) in (2, 3)
        assert sum(math.exp(each) for each in top.values()) <= 1.0001
    behind = logprobs["text_offset"][len(prompt)]
    assert behind == len(STORY)
    for offset, token in list(zip(logprobs["text_offset"], logprobs["tokens"], strict=True))[2:]:
        assert choice["text"][offset:].startswith(token)


def test_max_tokens_0_scores_the_prompt_alone(live: Live) -> None:
    scored = one(live, echo=True, logprobs=0, max_tokens=0)
    assert scored["text"] == STORY and scored["finish_reason"] == "length"
    assert len(scored["logprobs"]["tokens"]) == len(live.engine.tokenize(STORY))
    more = one(live, echo=True, logprobs=0, max_tokens=1)["logprobs"]
    assert more["token_logprobs"][1:-1] == pytest.approx(
        scored["logprobs"]["token_logprobs"][1:], abs=1e-2
    )


@pytest.mark.parametrize("most", [0, 3])
def test_a_stream_tells_the_same(live: Live, most: int) -> None:
    body: dict[str, Any] = {"prompt": [STORY, "A dog"], "n": 2, "max_tokens": most}
    body |= {"echo": True, "logprobs": 1, "temperature": 0}
    whole = asked(live, **body)["choices"]
    parts: dict[int, list[Any]] = {}
    told = live.post(PATH, {**body, "stream": True}).text.split("\n\n")
    assert told[-2:] == ["data: [DONE]", ""]
    for event in told[:-2]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            parts.setdefault(choice["index"], []).append(choice)
    for choice in whole:
        streamed = parts[choice["index"]]
        assert "".join(part["text"] for part in streamed) == choice["text"]
        for name, values in choice["logprobs"].items():
            found = [v for part in streamed if part["logprobs"] for v in part["logprobs"][name]]
            if name in ("tokens", "text_offset"):
                assert found == values
            assert len(found) == len(values)


def test_the_token_that_ends_an_echoed_text_counts(live: Live) -> None:
    """lm-eval takes the values between the context and the one token that follows the prompt."""
    end = live.engine.info().eos_token
    choice = one(live, echo=True, logprobs=0, max_tokens=1, logit_bias={str(end): 100})
    assert choice["finish_reason"] == "stop" and choice["text"] == STORY
    assert len(choice["logprobs"]["tokens"]) == len(live.engine.tokenize(STORY)) + 1


def test_prompt_logprobs_are_by_token_number(live: Live) -> None:
    tokens = live.engine.tokenize(STORY)
    first, *others = one(live, prompt=tokens, prompt_logprobs=2, max_tokens=1)["prompt_logprobs"]
    assert first is None
    for token, found in zip(tokens[1:], others, strict=True):
        own = found[str(token)]
        assert own["decoded_token"] == live.engine.piece(token).decode()
        by_rank = sorted((each["rank"], each["logprob"]) for each in found.values())
        assert [rank for rank, _ in by_rank[:2]] == [1, 2]
        assert [value for _, value in by_rank] == sorted((v for _, v in by_rank), reverse=True)
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Hi"}],
        "prompt_logprobs": 0,
        "max_tokens": 1,
    }
    answer = asked(live, "/v1/chat/completions", **body)
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert all(len(found) == 1 for found in answer["prompt_logprobs"][1:])


def test_named_tokens_have_their_log_probabilities(live: Live) -> None:
    named = live.engine.tokenize(" the dog", add_special=False)[:2]
    texts = [live.engine.piece(token).decode() for token in named]
    choice = one(live, logprob_token_ids=named, max_tokens=3)
    for token, top in zip(
        choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"], strict=True
    ):
        assert set(top) == {*texts, token}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    (chat,) = asked(live, "/v1/chat/completions", **body, logprob_token_ids=named)["choices"]
    (token,) = chat["logprobs"]["content"]
    assert [top["token"] for top in token["top_logprobs"]] == texts


def test_the_best_of_some_are_shown_best_first(live: Live) -> None:
    body: dict[str, Any] = {
        "prompt": [STORY, "A dog"],
        "max_tokens": 8,
        "temperature": 1.0,
        "seed": 5,
    }
    everything = asked(live, **body, n=6, logprobs=0)["choices"]
    answer = asked(live, **body, n=2, best_of=6)
    means = [
        sum(choice["logprobs"]["token_logprobs"]) / len(choice["logprobs"]["tokens"])
        for choice in everything
    ]
    for prompt in range(2):
        made = list(zip(means[prompt * 6 : prompt * 6 + 6], everything[prompt * 6 :], strict=False))
        best = sorted(made, key=lambda each: each[0], reverse=True)[:2]
        shown = answer["choices"][prompt * 2 : prompt * 2 + 2]
        assert [choice["text"] for choice in shown] == [choice["text"] for _, choice in best]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] > 4 * 8, "all that was made counts"


def test_the_tokenizer_can_be_used_from_elsewhere(live: Live) -> None:
    told, info = live.get("/tokenizer_info").json(), live.engine.info()
    assert told["bos_token"] == info.bos_text and told["eos_token"] == info.eos_text
    assert told["chat_template"] == info.chat_template
    assert told["model_max_length"] == info.context.ctx_size
    # As lm-eval's RemoteTokenizer asks.
    plain = asked(live, "/tokenize", prompt=STORY, add_special_tokens=False)["tokens"]
    assert plain == live.engine.tokenize(STORY, add_special=False)
    assert asked(live, "/tokenize", prompt=STORY)["tokens"] == live.engine.tokenize(STORY)
    assert asked(live, "/detokenize", tokens=plain)["prompt"] == STORY
    assert asked(live, "/tokenize", prompt=told["eos_token"], add_special_tokens=False) == {
        "tokens": [info.eos_token]
    }
    assert told["add_bos_token"] == (live.engine.tokenize("")[:1] == [info.bos_token])
    json.dumps(told, allow_nan=False)
