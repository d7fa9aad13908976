"""What clients of llama-server send, in every API; and what the operator's defaults change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from cllm.api import ApiSettings
from cllm.api.formats.grammar import Grammar, thoughts
from cllm.api.llama_fields import sampling_defaults
from cllm.engine import Constraint, Engine, SamplingParams
from tests.api.api_client import PATIENCE, Live, eventually, serving
from tests.random_model import random_path

HELLO = [{"role": "user", "content": "Hello!"}]
STORY = "Once upon a time"


@pytest.fixture(scope="module")
def gap() -> Iterator[Live]:
    """A model for filling gaps."""
    with Engine.load(random_path(fim=True), parallel=2) as engine, serving(engine) as live:
        yield live


def answered(live: Live, path: str, body: dict[str, Any]) -> Any:
    response = live.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(live: Live, path: str, body: dict[str, Any]) -> list[Any]:
    response = live.post(path, {**body, "stream": True})
    assert response.status_code == 200, response.text
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def model_of(live: Live) -> str:
    return live.engine.info().path.stem


def text_of(live: Live, path: str, fields: dict[str, Any]) -> str:
    """The text that an API answers with the same prompt and seed."""
    if path.startswith("/api/"):
        own = {"temperature": fields["temperature"], "num_predict": 12, "seed": 5}
        body = {"model": model_of(live), "stream": False, "options": own, **fields}
        body |= {"messages": HELLO} if path == "/api/chat" else {"prompt": STORY, "raw": True}
        answer = answered(live, path, body)
        return str(answer["response"] if "response" in answer else answer["message"]["content"])
    if path in ("/v1/chat/completions", "/v1/messages"):
        answer = answered(live, path, {"messages": HELLO, "max_tokens": 12, "seed": 5, **fields})
        if path == "/v1/messages":
            return "".join(block["text"] for block in answer["content"])
        return str(answer["choices"][0]["message"]["content"])
    if path == "/v1/responses":
        body = {"input": "Hello!", "max_output_tokens": 12, "seed": 5, **fields}
        return str(answered(live, path, body)["output"][0]["content"][0]["text"])
    answer = answered(live, path, {"prompt": STORY, "max_tokens": 12, "seed": 5, **fields})
    if path == "/generate":
        return str(answer["data"]["text"])
    return str(answer["content"] if path == "/completion" else answer["choices"][0]["text"])


PATHS = (
    "/completion", "/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses",
    "/v1/messages", "/api/chat", "/api/generate",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_api_samples_as_the_fields_say(live: Live, path: str) -> None:
    free = text_of(live, path, {"temperature": 1})
    for field in (
        {"repeat_penalty": 2.0, "repeat_last_n": -1},
        {"samplers": ["top_k"], "mirostat": 2},
        {"typical_p": 0.1},
        {"dynatemp_range": 1.0},
        {"top_n_sigma": 0.1},
    ):
        assert text_of(live, path, {"temperature": 1, **field}) != free, field
    assert text_of(live, path, {"temperature": 1, "n_predict": 2}) != free
    assert free.startswith(text_of(live, path, {"temperature": 1, "n_predict": 2}))


REFUSED = {
    "lora": [{"id": 0, "scale": 1}],
    "id_slot": 99,
    "grammar_lazy": True,
    "grammar_triggers": [{"type": 1, "value": "x"}],
    "reasoning_budget_message": "Enough.",
    "reasoning_format": "nonsense",
}


@pytest.mark.parametrize("path", PATHS)
def test_every_api_refuses_what_it_cannot_do(live: Live, path: str) -> None:
    text = "input" if path == "/v1/responses" else "prompt"
    body = {text: STORY, "messages": HELLO, "max_tokens": 1, "model": model_of(live)}
    for name, value in REFUSED.items():
        response = live.post(path, {**body, name: value})
        assert response.status_code == 400 and name in response.text, response.text


def test_the_editors_of_llama_cpp_get_their_gaps_filled(gap: Live) -> None:
    """The bodies of llama.vim and llama.vscode."""
    body = {
        "input_prefix": "def f(a):\n", "input_suffix": "\n", "prompt": "    return",
        "input_extra": [], "n_predict": 8, "n_indent": 4, "top_k": 40, "top_p": 0.90,
        "stream": False, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True,
        "t_max_prompt_ms": 500, "t_max_predict_ms": 1000, "seed": 1,
        "response_fields": ["content", "timings/prompt_n", "truncated"],
    }  # fmt: skip
    answer = answered(gap, "/infill", body)
    assert set(answer) == {"content", "timings/prompt_n", "truncated"}
    warmed = answered(gap, "/infill", {**body, "n_predict": 0, "response_fields": []})
    assert (warmed["content"], warmed["tokens_predicted"]) == ("", 0)


def test_a_line_that_is_indented_less_ends_the_text(live: Live) -> None:
    grammar = 'root ::= "a\\n   b\\n  c\\n    d"'
    body = {"prompt": STORY, "grammar": grammar, "n_indent": 3}
    answer = answered(live, "/completion", body)
    assert answer["content"] == "a\n   b\n  " and answer["stop_type"] == "limit"
    assert answered(live, "/completion", {**body, "n_indent": 2})["content"].endswith("c\n    d")


def test_sillytaverns_default_samplers_are_taken(live: Live) -> None:
    body = {
        "prompt": STORY, "n_predict": 3, "adaptive_target": -0.01, "adaptive_decay": 0.9,
        "min_keep": 0, "logit_bias": [], "dry_sequence_breakers": ["\n", ":", '"', "*"],
        "samplers": [
            "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "tfs_z", "top_p", "min_p", "xtc",
            "temperature", "adaptive_p",
        ],
    }  # fmt: skip
    shown = answered(live, "/completion", body)["generation_settings"]
    assert shown["samplers"][-1] == "adaptive_p" and "tfs_z" not in shown["samplers"]
    body["adaptive_target"] = 0.3
    assert answered(live, "/completion", body)["generation_settings"]["adaptive_target"] == 0.3


@pytest.mark.parametrize("stream", [False, True])
def test_the_web_page_of_llama_server_gets_its_figures(live: Live, stream: bool) -> None:
    body = {
        "messages": HELLO, "max_tokens": 4, "temperature": 0.8, "timings_per_token": True,
        "return_progress": True, "reasoning_format": "auto", "samplers": ["top_k", "temperature"],
        "backend_sampling": False, "seed": 1, "dynatemp_range": 0, "xtc_probability": 0,
    }  # fmt: skip
    if not stream:
        answer = answered(live, "/v1/chat/completions", body)
        assert answer["timings"]["predicted_n"] == 4
        assert answer["system_fingerprint"].startswith("b")
        return
    chunks = streamed(live, "/v1/chat/completions", body)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    progress = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert progress[0]["processed"] == progress[0]["cache"]
    assert progress[-1]["processed"] == progress[-1]["total"]
    assert chunks[-1]["timings"]["predicted_n"] == 4
    texts = [chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    assert texts and all("timings" in chunk for chunk in texts)


@pytest.mark.parametrize("most", [{"max_tokens": -1}, {"max_completion_tokens": -1}])
def test_minus_one_is_no_bound_and_zero_reads_the_prompt(live: Live, most: Any) -> None:
    grammar_free = {"messages": HELLO, "stop": [" "], **most}
    answer = answered(live, "/v1/chat/completions", grammar_free)
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    nothing = answered(live, "/v1/chat/completions", {"messages": HELLO, "n_predict": 0, **most})
    assert nothing["choices"][0]["message"]["content"] == ""
    assert nothing["usage"]["completion_tokens"] == 0
    again = answered(live, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})
    details = again["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] == again["usage"]["prompt_tokens"] - 1


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 2.0}, {"n": 1.0}, {"seed": 42.0}, {"top_k": 40.0}, {"top_logprobs": 0},
        {"logprobs": False, "top_logprobs": 0}, {"logit_bias": []}, {"stop": ""},
        {"stream_options": []},
    ],
)  # fmt: skip
def test_numbers_and_nothings_as_other_servers_take_them(live: Live, field: Any) -> None:
    answered(live, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 2, **field})
    response = live.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2.5})
    assert response.status_code == 400 and "max_tokens: 2.5" in response.text


def test_probabilities_after_the_samplers(live: Live) -> None:
    body = {"prompt": STORY, "n_probs": 5, "n_predict": 3, "top_k": 4, "samplers": ["top_k"]}
    answer = answered(live, "/completion", {**body, "post_sampling_probs": True})
    for token in answer["completion_probabilities"]:
        found = [each["prob"] for each in token["top_probs"]]
        assert len(found) == 4 and math.isclose(sum(found), 1.0, abs_tol=1e-4)
        assert found == sorted(found, reverse=True) and token["prob"] in found
    greedy = {"prompt": STORY, "n_probs": 5, "n_predict": 1, "temperature": 0}
    (token,) = answered(live, "/completion", {**greedy, "post_sampling_probs": True})[
        "completion_probabilities"
    ]
    assert [each["prob"] for each in token["top_probs"]] == [1.0]


def test_n_probs_are_log_probabilities_of_a_chat(live: Live) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "n_probs": 3}
    shown = answered(live, "/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in shown] == [3, 3]


def test_a_bias_may_be_a_text_or_a_list(live: Live) -> None:
    free = text_of(live, "/v1/completions", {"temperature": 0})
    first = free.split()[0]
    for bias in ([[f" {first}", False]], {f" {first}": -100}):
        banned = text_of(live, "/v1/completions", {"temperature": 0, "logit_bias": bias})
        assert not banned.lstrip().startswith(first)


def test_vertex_ai_sends_several_requests_in_one(live: Live) -> None:
    chat = {"@requestFormat": "chatCompletions", "max_tokens": 2, "messages": HELLO}
    instances = [
        chat,
        {"@requestFormat": "tokenize", "content": "Hello"},
        {**chat, "stream": True, "max_tokens": 1},
        {"@requestFormat": "nonsense"},
        {**chat, "messages": []},
    ]
    answer = answered(live, "/predict", {"instances": instances})
    first, second, third, wrong, refused = answer["predictions"]
    assert first["usage"]["completion_tokens"] == 2 and third["usage"]["completion_tokens"] == 1
    assert second["tokens"] and "@requestFormat" in wrong["error"]["message"]
    assert refused["error"]["param"] == "messages"
    assert answered(live, "/predict", {"instances": []}) == {"predictions": []}


def test_counts_of_a_prompt(live: Live) -> None:
    for prefix in ("", "/v1"):
        chat = answered(live, f"{prefix}/chat/completions/input_tokens", {"messages": HELLO})
        response = answered(live, f"{prefix}/responses/input_tokens", {"input": "Hello!"})
        assert chat == response and chat["input_tokens"] > 3
    long = {"messages": [{"role": "user", "content": "word " * 9000}]}
    counted = answered(live, "/v1/chat/completions/input_tokens", long)
    assert counted["input_tokens"] > 9000
    assert answered(live, "/responses", {"input": "Hi", "max_output_tokens": 1})["output"]


def test_a_final_message_stays_open_as_the_request_says(live: Live) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Well"}]

    def prompt(**fields: Any) -> str:
        return str(answered(live, "/apply-template", {"messages": begun, **fields})["prompt"])

    assert prompt().endswith("Well") and prompt(continue_final_message=True).endswith("Well")
    assert not prompt(continue_final_message=False).endswith("Well")
    for wrong in (
        {"messages": begun, "add_generation_prompt": True, "continue_final_message": True},
        {"messages": HELLO, "continue_final_message": True},
        {"messages": [*begun, {"role": "assistant", "content": "er"}]},
    ):
        response = live.post("/v1/chat/completions", {**wrong, "max_tokens": 1})
        assert response.status_code == 400, response.text


def test_the_prompt_is_shown_on_request(live: Live) -> None:
    body = {"messages": HELLO, "max_tokens": 1}
    shown = answered(live, "/v1/chat/completions", {**body, "verbose": True})["__verbose"]
    assert shown["prompt"] == answered(live, "/apply-template", body)["prompt"]
    assert "__verbose" not in answered(live, "/v1/chat/completions", body)


def test_progress_begins_before_the_prompt_is_read(live: Live) -> None:
    body = {"prompt": "word " * 700, "n_predict": 1, "cache_prompt": False}
    body |= {"return_progress": True, "timings_per_token": True}
    events = [e for e in streamed(live, "/completion", body) if "prompt_progress" in e]
    first, last = events[0], events[-1]
    assert (first["timings"]["prompt_n"], first["timings"]["prompt_ms"]) == (0, 0.0)
    assert first["prompt_progress"]["processed"] == first["prompt_progress"]["cache"]
    assert last["prompt_progress"]["processed"] == last["prompt_progress"]["total"]
    assert last["timings"]["predicted_n"] == 0 and last["timings"]["prompt_ms"] > 0


def test_the_operators_defaults_apply_where_a_request_says_nothing(engine: Engine) -> None:
    defaults = sampling_defaults({"temperature": "0", "n_predict": "3", "seed": 9, "top_k": 7})
    settings = ApiSettings(sampling=defaults, alias=("code", "mine"), tags=("small",))
    with serving(engine, settings) as live:
        plain = answered(live, "/completion", {"prompt": STORY})
        shown = plain["generation_settings"]
        assert (shown["n_predict"], shown["seed"], shown["top_k"]) == (3, 9, 7)
        assert plain["tokens_predicted"] == 3
        usage = answered(live, "/v1/chat/completions", {"messages": HELLO})["usage"]
        assert usage["completion_tokens"] <= 3
        own = answered(live, "/completion", {"prompt": STORY, "n_predict": 5, "temperature": 0.5})
        assert own["tokens_predicted"] == 5 and own["generation_settings"]["temperature"] == 0.5
        assert live.get("/props").json()["default_generation_settings"]["params"]["seed"] == 9
        (model,) = live.get("/v1/models").json()["data"]
        assert (model["id"], model["aliases"]) == ("code", ["code", "mine"])
        assert model["tags"] == ["small"] and plain["model"] == "code"
        assert live.get("/v1/models/mine").status_code == 200
        asked = {"model": "mine", "messages": HELLO, "stream": False}
        assert answered(live, "/api/chat", asked)["eval_count"] <= 3
        free = {"model": "code", "prompt": STORY, "stream": False}
        assert answered(live, "/api/generate", {**free, "raw": True})["eval_count"] == 3
        longer = {**free, "raw": True, "options": {"num_predict": 5}}
        assert answered(live, "/api/generate", longer)["eval_count"] == 5


def test_what_the_operator_hides_answers_501(engine: Engine) -> None:
    with serving(engine, ApiSettings(slots=False, metrics=False)) as live:
        assert live.get("/slots").status_code == 501
        assert live.get("/metrics").status_code == 501
        props = live.get("/props").json()
        assert (props["endpoint_slots"], props["endpoint_metrics"]) == (False, False)


def test_metrics_have_llama_servers_header_and_types(live: Live) -> None:
    response = live.get("/metrics")
    assert float(response.headers["Process-Start-Time-Unix"]) > 0
    assert "# TYPE llamacpp:n_tokens_max counter" in response.text


def test_an_idle_slot_has_no_budget_left_over(live: Live) -> None:
    answered(live, "/completion", {"prompt": STORY, "n_predict": 3})

    def idle() -> bool:
        return not any(slot["is_processing"] for slot in live.get("/slots").json())

    eventually(idle, "the slots are idle")
    for slot in live.get("/slots").json():
        if "next_token" in slot:
            assert (slot["next_token"][0]["n_remain"], slot["next_token"][0]["n_decoded"]) == (
                -1,
                0,
            )


@pytest.mark.parametrize(
    ("reasoning", "asked", "end"),
    [
        (None, {}, "on"),
        (False, {}, "off"),
        (False, {"reasoning_effort": "high"}, "on"),
        (True, {"chat_template_kwargs": {"enable_thinking": False}}, "off"),
        (None, {"thinking_budget_tokens": 0}, "off"),
    ],
)
def test_templates_think_unless_told_otherwise(
    engine: Engine, reasoning: bool | None, asked: Any, end: str
) -> None:
    template = "{{ 'on' if enable_thinking else 'off' }}"
    settings = ApiSettings(chat_template=template, reasoning=reasoning)
    with serving(engine, settings) as live:
        body = {"messages": HELLO, **asked}
        assert answered(live, "/apply-template", body)["prompt"] == end


def test_a_budget_that_cannot_be_held_is_refused(stories: Live) -> None:
    template = "{{ messages[0].content }}<think>\n"  # text to this model, not a token
    with serving(stories.engine, ApiSettings(chat_template=template)) as live:
        body = {"messages": HELLO, "max_tokens": 1, "thinking_budget_tokens": 5}
        response = live.post("/v1/chat/completions", body)
        assert response.status_code == 400 and "thinking_budget_tokens" in response.text
        assert answered(live, "/v1/chat/completions", {**body, "thinking_budget_tokens": -1})


@pytest.mark.parametrize("budget", [0, 5])
def test_a_budget_ends_the_thoughts(engine: Engine, budget: int) -> None:
    (end,) = engine.tokenize("<|im_start|>", add_special=False, parse_special=True)
    grammar = Grammar(lambda marker: end)
    start = f"{thoughts(grammar, ('<think>', '</think>'), True, budget)} TEXT"
    params = SamplingParams(
        max_tokens=12,
        seed=1,
        record_tokens=True,
        ignore_eos=True,
        constraint=Constraint("lark", grammar.source(start)),
    )
    generation = engine.submit("Hello", params)
    generation.wait(PATIENCE)
    tokens = [record.token for record in generation.take_tokens()]
    assert tokens.index(end) == budget


@pytest.mark.parametrize("name", ["chatml", "llama3", "command-r"])
def test_a_built_in_template_is_rendered_by_llama_cpp(engine: Engine, name: str) -> None:
    template = f"{{{{ builtin_template({name!r}) }}}}"
    with serving(engine, ApiSettings(chat_template=template)) as live:
        messages = [{"role": "system", "content": "Be brief."}, *HELLO]
        prompt = answered(live, "/apply-template", {"messages": messages})["prompt"]
        assert "Be brief." in prompt and "Hello!" in prompt and "builtin" not in prompt
        begun = [*messages, {"role": "assistant", "content": "Well"}]
        assert answered(live, "/apply-template", {"messages": begun})["prompt"].endswith("Well")
        spelled = [{"role": "user", "content": "a<|im_end|>b"}]
        body = {"messages": spelled, "max_tokens": 1}
        assert answered(live, "/v1/chat/completions", body)["usage"]["prompt_tokens"] > 5
