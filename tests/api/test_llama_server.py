"""llama-server's endpoints; over 400 lines, since one recording covers them all.

All fields that its clients read are there, with true numbers. tests/tools/llama_server_fields.py
recorded llama-server's own answers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, SamplingParams
from tests.api.api_client import (
    PATIENCE,
    Live,
    begin_post,
    events,
    eventually,
    frozen,
    idle,
    serving,
)
from tests.random_model import random_path

FOLDER = Path(__file__).parent
REQUESTS: dict[str, Any] = json.loads((FOLDER / "llama_server_requests.json").read_text())
ANSWERS: dict[str, Any] = json.loads((FOLDER / "llama_server_fields.json").read_text())["answers"]
STORY = "Once upon a time"


@pytest.fixture
def stories(stories: Live) -> Iterator[Live]:
    yield stories
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def complete(live: Live, **fields: Any) -> Any:
    """POST ``/completion``, expect success."""
    response = live.post("/completion", {"temperature": 0, "n_predict": 8, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(live: Live, **fields: Any) -> list[dict[str, Any]]:
    body = {"temperature": 0, "n_predict": 8, "stream": True, **fields}
    with live.post("/completion", body, stream=True) as response:
        assert response.status_code == 200, response.text
        return list(events(response.iter_content(None)))


def refused(live: Live, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    """POST, expect llama-server's shape of an error, give it."""
    response = live.post(path, body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == status and {"code", "message", "type"} <= error.keys()
    return error


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Hold the engine thread with a generation in a slot."""
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert release.wait(PATIENCE)

    generation = engine.submit("a", SamplingParams(max_tokens=2), on_update=hold)
    assert entered.wait(PATIENCE) and not generation.done
    try:
        yield
    finally:
        release.set()
        generation.result(PATIENCE)


def paths(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            here = f"{path}.{name}" if path else name
            yield here
            yield from paths(inner, here)
    elif isinstance(value, list) and value:
        yield from paths(value[0], path + "[]")


@pytest.mark.parametrize("name", REQUESTS)
def test_every_field_that_llama_server_answers_is_there(stories: Live, name: str) -> None:
    asked, expected = REQUESTS[name], ANSWERS[name]
    stories.engine.generate("Hi", max_tokens=1)  # so that a slot has something to tell
    if "body" in asked:
        response = stories.post(asked["path"], asked["body"])
    else:
        response = stories.get(asked["path"])
    assert response.status_code == expected["status"], response.text
    if name == "metrics":
        found = {line.split()[0] for line in response.text.splitlines()}
        assert set(expected["fields"]) <= found
    elif "first" in expected:
        first, *_, last = events(iter([response.content]))
        assert set(expected["first"]) - set(paths(first)) == set()
        assert set(expected["last"]) - set(paths(last)) == set()
    else:
        assert set(expected["fields"]) - set(paths(response.json())) == set()


def test_a_completion_says_how_it_ended_and_what_it_took(stories: Live) -> None:
    answer = complete(stories, prompt=STORY, n_predict=5, cache_prompt=False)
    timings = answer["timings"]
    assert answer["stop_type"] == "limit" and answer["stopping_word"] == ""
    assert answer["tokens_predicted"] == timings["predicted_n"] == 5
    assert answer["tokens_evaluated"] == timings["prompt_n"] > 3
    assert answer["tokens_cached"] == answer["tokens_evaluated"] + 4
    assert timings["cache_n"] == 0 and timings["prompt_ms"] > 0
    assert timings["predicted_per_second"] == pytest.approx(4000 / timings["predicted_ms"])
    assert answer["prompt"] == "<|startoftext|>" + STORY
    assert not answer["truncated"]
    again = complete(stories, prompt=STORY, n_predict=5, id_slot=answer["id_slot"])
    assert again["content"] == answer["content"]
    assert again["timings"]["cache_n"] == answer["tokens_evaluated"] - 1
    fresh = complete(stories, prompt=STORY, n_predict=5, cache_prompt=False)
    assert fresh["timings"]["cache_n"] == 0 and fresh["content"] == answer["content"]


def test_a_stop_word_is_told(stories: Live) -> None:
    whole = complete(stories, prompt=STORY, n_predict=30)["content"]
    word = whole.split()[3]
    answer = complete(stories, prompt=STORY, n_predict=30, stop=["never said", word])
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", word)
    assert answer["content"] == whole[: whole.index(word)]


def test_the_end_of_the_text_is_told(stories: Live) -> None:
    prompt = stories.post("/apply-template", {"messages": [{"role": "user", "content": "Hello!"}]})
    answer = complete(stories, prompt=prompt.json()["prompt"], n_predict=-1)
    assert answer["stop_type"] == "eos" and answer["generation_settings"]["n_predict"] == -1


def test_a_text_that_fills_the_context_is_truncated() -> None:
    with (
        Engine.load(random_path(), parallel=1, ctx_size=64) as engine,
        serving(engine) as live,
    ):
        answer = complete(live, prompt="the of and", n_predict=-1)
        assert answer["truncated"] and answer["stop_type"] == "limit"
        assert answer["tokens_evaluated"] + answer["tokens_predicted"] == 64
        error = refused(live, "/completion", {"prompt": "the of and " * 100})
        assert error["type"] == "exceed_context_size_error"
        assert error["n_ctx"] == 64 and error["n_prompt_tokens"] > 100
        assert idle(engine)


def test_a_reproducible_text_reads_its_whole_prompt_each_time(stories: Live) -> None:
    fields = {"prompt": "Once upon a time", "seed": 5, "temperature": 1.5, "n_predict": 12}
    one, again = (complete(stories, **fields, reproducible=True) for _ in range(2))
    assert one["content"] == again["content"]
    assert again["timings"]["cache_n"] == 0 < complete(stories, **fields)["timings"]["cache_n"]
    assert (
        "reproducible" in refused(stories, "/completion", {**fields, "reproducible": 3})["message"]
    )


def test_with_context_shift_a_full_text_goes_on() -> None:
    with (
        Engine.load(random_path(), parallel=1, ctx_size=64, context_shift=True) as engine,
        serving(engine) as live,
    ):
        fields = {"prompt": "the of and", "n_predict": 90, "ignore_eos": True, "n_keep": 2}
        answer = complete(live, **fields, n_discard=20)
        assert answer["truncated"] and answer["stop_type"] == "limit"
        assert answer["tokens_predicted"] == 90 and answer["tokens_cached"] < 64
        told = answer["generation_settings"]
        assert (told["n_keep"], told["n_discard"]) == (2, 20)
        assert not complete(live, **{**fields, "n_predict": 9})["truncated"]
        error = refused(live, "/completion", {"prompt": "the of and " * 100})
        assert error["type"] == "exceed_context_size_error"
        chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 90, "n_keep": -1}
        body = live.post("/v1/chat/completions", {**chat, "ignore_eos": True}).json()
        assert body["usage"]["completion_tokens"] == 90
        assert "cllm_context_shifts_total" in live.get("/metrics").text


def test_a_stream_says_the_same_and_its_tokens_are_those_of_the_text(stories: Live) -> None:
    whole = complete(stories, prompt="Nǐ 你", n_predict=40, return_tokens=True, n_probs=1)
    *pieces, last = streamed(stories, prompt="Nǐ 你", n_predict=40, n_probs=1)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    told = [token for piece in pieces for token in piece["tokens"]]
    assert told == whole["tokens"][: len(told)] and len(told) >= len(whole["tokens"]) - 4
    assert [piece["tokens_predicted"] for piece in pieces] == [
        sum(len(p["tokens"]) for p in pieces[: n + 1]) for n in range(len(pieces))
    ]
    assert last["stop"] and last["content"] == "" and not any(p["stop"] for p in pieces)
    probabilities = [p for piece in pieces for p in piece["completion_probabilities"]]
    assert [p["id"] for p in probabilities] == told
    assert all(len(piece["completion_probabilities"]) == len(piece["tokens"]) for piece in pieces)


def test_probabilities_tell_the_alternatives(stories: Live) -> None:
    answer = complete(stories, prompt=STORY, n_predict=3, n_probs=3)
    first = answer["completion_probabilities"][0]
    assert first["top_logprobs"][0]["id"] == first["id"]
    assert len(first["top_logprobs"]) == 3
    assert 0 >= first["logprob"] >= first["top_logprobs"][1]["logprob"]
    assert bytes(first["bytes"]).decode() == first["token"]


def test_progress_is_told_while_the_prompt_is_read() -> None:
    with (
        Engine.load(random_path(), parallel=1, batch_size=32, ubatch_size=32) as engine,
        serving(engine) as live,
    ):
        found = streamed(live, prompt="the of and to in " * 30, return_progress=True, n_predict=2)
        progress = [event["prompt_progress"] for event in found if "prompt_progress" in event]
        processed = [each["processed"] for each in progress]
        total = found[-1]["tokens_evaluated"]
        assert processed == sorted(processed) and processed[-1] == total == progress[0]["total"]
        assert "".join(event["content"] for event in found if "prompt_progress" not in event)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Once upon", "<|startoftext|>Once upon"),
        (["Once", 260, " time"], "<|startoftext|>Once a time"),
        ([260, " time"], " a time"),
        ({"prompt_string": "Once"}, "<|startoftext|>Once"),
        ("<|im_end|>", "<|startoftext|><|im_end|>"),
    ],
    ids=["text", "text and tokens", "tokens and text", "an object", "control tokens"],
)
def test_the_forms_of_a_prompt(stories: Live, prompt: Any, expected: str) -> None:
    assert complete(stories, prompt=prompt, n_predict=1)["prompt"] == expected


def test_several_prompts_and_several_completions_are_a_list(stories: Live) -> None:
    answers = complete(stories, prompt=["a", [260], {"prompt_string": "b"}], n_cmpl=2)
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3, 4, 5]
    assert answers[0]["content"] == answers[1]["content"]
    assert [answer["prompt"] for answer in answers[::2]] == [
        "<|startoftext|>a", " a", "<|startoftext|>b"
    ]  # fmt: skip


def test_a_seed_is_kept_and_the_settings_are_told(stories: Live) -> None:
    asked = {"prompt": STORY, "temperature": 1.5, "seed": 7, "n_predict": 20, "top_k": 0}
    first, again = complete(stories, **asked), complete(stories, **asked)
    assert first["content"] == again["content"]
    told = first["generation_settings"]
    assert (told["seed"], told["temperature"], told["top_k"]) == (7, 1.5, 0)


@pytest.mark.parametrize(
    "bias", [[[260, False]], [[" a", False]], {"260": False}, {" a": -100}, [[260, -50.5]]]
)
def test_the_forms_of_logit_bias(stories: Live, bias: Any) -> None:
    plain = complete(stories, prompt="Once upon", n_predict=1, return_tokens=True)
    assert plain["tokens"] == [260]
    biased = complete(stories, prompt="Once upon", n_predict=1, return_tokens=True, logit_bias=bias)
    assert biased["tokens"] != [260]


def test_a_token_of_logit_bias_that_is_no_number_is_text(stories: Live) -> None:
    assert complete(stories, prompt="Once upon", n_predict=1, logit_bias={"--5": 1})["content"]


def test_a_huge_token_of_logit_bias_is_refused(stories: Live) -> None:
    for token in (5000 * "9", "-" + 5000 * "9"):
        asked = {"prompt": "Once upon", "logit_bias": {token: 1}}
        refused = stories.post("/completion", asked)
        assert refused.status_code == 400, refused.text
        message = refused.json()["error"]["message"]
        assert message.startswith("logit_bias: ") and len(message) < 200


def test_samplers_that_are_not_named_do_nothing(stories: Live) -> None:
    wild = {"prompt": STORY, "temperature": 50, "top_k": 1, "seed": 1, "n_predict": 10}
    greedy = complete(stories, prompt=STORY, n_predict=10)["content"]
    assert complete(stories, **wild, samplers=["top_k", "temperature"])["content"] == greedy
    assert complete(stories, **wild, samplers="kt")["content"] == greedy
    assert complete(stories, **wild, samplers=["temperature"])["content"] != greedy


@pytest.mark.parametrize(
    "fields",
    [
        {"samplers": ["temperature", "min-p", "typ_p"], "min_p": 0.9},
        {"samplers": "edskypmxt", "xtc_probability": 0.5, "xtc_threshold": 0.2},
        {"mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.2},
        {"dry_multiplier": 1.0, "dry_base": 2.0, "dry_sequence_breakers": ["."]},
        {"dynatemp_range": 0.5, "dynatemp_exponent": 2.0, "top_n_sigma": 1.0},
        {"repeat_last_n": 8, "repeat_penalty": 1.5, "typical_p": 0.5},
    ],
)
def test_every_sampler_can_be_asked_for_and_is_told(stories: Live, fields: Any) -> None:
    asked = {"prompt": STORY, "temperature": 1.2, "seed": 4, "n_predict": 12, **fields}
    first, again = complete(stories, **asked), complete(stories, **asked)
    assert first["content"] == again["content"] and first["tokens_predicted"] == 12
    told = first["generation_settings"]
    for name, value in fields.items():
        if name != "samplers":
            assert told[name] == value
    if "samplers" in fields:
        assert told["samplers"][-1] == ("typ_p" if len(told["samplers"]) == 3 else "temperature")


def test_a_schema_or_a_grammar_holds_whole_and_streamed(stories: Live) -> None:
    age = {"type": "integer", "minimum": 0, "maximum": 99}
    properties = {"name": {"type": "string", "maxLength": 20}, "age": age}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"],
              "additionalProperties": False}  # fmt: skip
    asked = {"prompt": STORY, "n_predict": 200, "temperature": 1, "seed": 3}
    answer = complete(stories, **asked, json_schema=schema)
    found = json.loads(answer["content"])
    assert set(found) == {"name", "age"} and answer["stop_type"] == "eos"
    pieces = streamed(stories, **asked, json_schema=schema)
    assert "".join(piece["content"] for piece in pieces) == answer["content"]
    grammar = 'root ::= "fox" | "lantern"'
    answer = complete(stories, **asked, grammar=grammar)
    assert answer["content"] in ("fox", "lantern")
    assert answer["generation_settings"]["grammar"] == grammar


def test_no_tokens_only_read_the_prompt(stories: Live) -> None:
    prompt = "A fox and a lantern went for a walk."
    answer = complete(stories, prompt=prompt, n_predict=0)
    assert (answer["content"], answer["tokens_predicted"]) == ("", 0)
    after = complete(stories, prompt=prompt, n_predict=1)
    assert after["timings"]["cache_n"] == answer["tokens_evaluated"] - 1
    (only,) = streamed(stories, prompt=prompt, n_predict=0)
    assert only["stop"] and only["content"] == ""


def test_a_time_limit_ends_a_text_that_has_a_line_break(stories: Live) -> None:
    talk = [{"role": "user", "content": "Tell me a story about a fox and a lantern."}]
    prompt = stories.post("/apply-template", {"messages": talk}).json()["prompt"]
    whole = complete(stories, prompt=prompt, n_predict=60)["content"]
    cut = complete(stories, prompt=prompt, n_predict=60, t_max_predict_ms=1)
    assert cut["has_new_line"] and cut["stop_type"] == "limit"
    assert "\n" in cut["content"] and cut["content"] != whole
    assert whole.startswith(cut["content"])


def test_a_slot_can_be_chosen_and_is_waited_for(stories: Live) -> None:
    for slot in (2, 0, 3):
        assert complete(stories, prompt=STORY, id_slot=slot)["id_slot"] == slot
    with frozen(stories.engine):
        peers = [
            begin_post(stories, "/completion", {"prompt": STORY, "id_slot": 1, "n_predict": 2})
            for _ in range(2)
        ]
        eventually(lambda: stories.engine.stats().queue_depth == 2, "both wait")
    for peer in peers:
        with peer:
            assert b'"id_slot":1' in peer.recv(65536)


@pytest.mark.usefixtures("steady_costs")
def test_slots_tell_what_they_are_at(stories: Live) -> None:
    complete(stories, prompt=STORY, id_slot=1, top_k=7)
    slots = stories.get("/slots").json()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert not slots[1]["is_processing"] and slots[1]["params"]["top_k"] == 7
    loops = complete(stories, prompt=STORY, id_slot=2, ignore_eos=True, n_predict=300)["timings"]
    slot = stories.get("/slots").json()[2]
    assert slot["draft_n"] == loops["draft_n"] > 0
    assert slot["draft_n_accepted"] == loops["draft_n_accepted"] > 0
    with held(stories.engine):
        slots = stories.get("/slots").json()
        assert [slot["is_processing"] for slot in slots].count(True) == 1
        assert stories.get("/slots?fail_on_no_slot=1").status_code == 200


def test_without_an_idle_slot_slots_can_fail(narrow: Engine) -> None:
    with serving(narrow) as live, held(narrow):
        response = live.get("/slots?fail_on_no_slot=1")
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "unavailable_error"


def test_tokens_and_back(stories: Live) -> None:
    text = "Hello <|im_end|> ü 你好"
    tokens = stories.post("/tokenize", {"content": text}).json()["tokens"]
    assert 2 in tokens
    assert stories.post("/detokenize", {"tokens": tokens}).json() == {
        "content": text,
        "prompt": text,
    }
    plain = stories.post("/tokenize", {"content": text, "parse_special": False}).json()["tokens"]
    assert 2 not in plain
    begun = stories.post("/tokenize", {"content": [2, "a"], "add_special": True}).json()["tokens"]
    assert begun[0] == 2
    begun = stories.post("/tokenize", {"content": "a", "add_special": True}).json()["tokens"]
    told = stories.post("/detokenize", {"tokens": begun}).json()
    assert told["content"] == "<|startoftext|>a"
    pieces = stories.post("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == tokens
    spelled = b"".join(
        bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces
    )
    assert spelled.decode() == text


def test_a_template_is_applied(stories: Live) -> None:
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": "Hel"},
    ]
    begun = stories.post("/apply-template", {"messages": talk}).json()["prompt"]
    assert begun == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHel"
    closed = {"messages": talk[:1], "add_generation_prompt": False}
    prompt = stories.post("/apply-template", closed).json()["prompt"]
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n"


def test_a_gap_is_filled_with_the_models_own_tokens(tmp_path: Path) -> None:
    with Engine.load(random_path(fim=True), parallel=2) as engine, serving(engine) as live:
        fields = {
            "input_prefix": "def a():\n",
            "input_suffix": "\n    return b",
            "input_extra": [{"filename": "b.py", "text": "b = 1"}],
            "prompt": "    b =",
            "n_predict": 4,
        }
        answer = live.post("/infill", fields).json()
        assert answer["prompt"].endswith(
            "<|file_sep|>b.py\nb = 1<|file_sep|>filename\n"
            "<|fim_prefix|>def a():\n<|fim_suffix|>\n    return b<|fim_middle|>    b ="
        )
        assert answer["tokens_predicted"] == 4
        long = {**fields, "input_prefix": "the of " * 5000, "input_suffix": "and to " * 5000}
        assert live.post("/infill", long).status_code == 200


def test_a_model_without_such_tokens_says_so(stories: Live) -> None:
    error = refused(stories, "/infill", {"input_prefix": "a", "input_suffix": "b"}, 501)
    assert error["type"] == "not_supported_error" and "prefix" in error["message"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["aGk="]}}, "multimodal_data"),
        ({"prompt": [99999999]}, "prompt"),
        ({"prompt": "a", "n_predict": -5}, "n_predict"),
        ({"prompt": "a", "n_probs": 1000}, "n_probs"),
        ({"prompt": "a", "n_cmpl": 1000}, "n_cmpl"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "logit_bias": [[99999999, 1]]}, "logit_bias"),
        ({"prompt": "a", "logit_bias": [[1]]}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"1": True}}, "logit_bias"),
        ({"prompt": "a", "stop": [""] * 3 + ["x"] * 100}, "stop"),
        ({"prompt": "a", "id_slot": 4}, "id_slot"),
        ({"prompt": "a", "grammar": "root ::= missing"}, "grammar: "),
        ({"prompt": "a", "json_schema": {"type": "nonsense"}}, "json_schema"),
        ({"prompt": "a", "lora": [{"id": 0, "scale": 1}]}, "lora"),
        (b"{bad", "JSON"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_queued(stories: Live, body: Any, named: str) -> None:
    before = stories.engine.stats().requests_submitted
    error = refused(stories, "/completion", body)
    assert named in error["message"] and error["type"] == "invalid_request_error"
    assert stories.engine.stats().requests_submitted == before


def test_a_grammar_that_takes_too_much_is_the_clients_to_simplify(stories: Live) -> None:
    body = {"prompt": "a", "n_predict": 8, "grammar": 'root ::= "a"{100000000}'}
    assert "too complex" in refused(stories, "/completion", body)["message"]
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def test_properties_cannot_be_changed(stories: Live) -> None:
    assert refused(stories, "/props", {}, 501)["type"] == "not_supported_error"


def test_metrics_count_in_llama_servers_names(stories: Live) -> None:
    def figure(name: str) -> float:
        lines = stories.get("/metrics").text.splitlines()
        (found,) = [line for line in lines if line.startswith(f"llamacpp:{name} ")]
        return float(found.split()[1])

    before = figure("tokens_predicted_total")
    answer = complete(stories, prompt=STORY, n_predict=9)
    assert figure("predicted_tokens_seconds") > 0
    assert figure("predicted_tokens_seconds") == 0  # of what ended since the previous scrape
    assert figure("tokens_predicted_total") == before + 9
    assert figure("n_tokens_max") >= answer["tokens_cached"]
    assert figure("tokens_predicted_seconds_total") > 0
    assert 1 <= figure("n_busy_slots_per_decode") <= 4


def test_other_paths_of_llama_server(stories: Live) -> None:
    for path in ("/health", "/v1/health"):
        assert stories.get(path).json()["status"] == "ok"
    assert stories.get("/models").json() == stories.get("/v1/models").json()
    asked = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
    answers = [stories.post(p, asked).json() for p in ("/chat/completions", "/v1/chat/completions")]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_the_template_s_abilities_are_told(stories: Live) -> None:
    props = stories.get("/props").json()
    assert props["total_slots"] == 4 and props["bos_token"] == "<|startoftext|>"
    caps = props["chat_template_caps"]
    assert caps["supports_system_role"] and caps["supports_string_content"]
    assert not caps["supports_tools"] and not caps["supports_typed_content"]
