"""Constrained texts; over 400 lines, since all languages share one set of helpers.

A text belongs to its language, with any other parameters and sequences.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cllm.engine import (
    Constraint,
    Engine,
    EngineClosed,
    EngineError,
    InvalidRequest,
    SamplingParams,
    TooIntricate,
)
from cllm.engine.constraints.constraint import MAX_SOURCE, Kind, json_rule
from cllm.engine.constraints.guide import Guide, MaskThread
from cllm.engine.constraints.json_schema import lark_expression
from cllm.engine.sequence import Sequence
from tests.engine.engine_helpers import WAIT, Loader, Watched, break_decode, finished, greedy

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def held(kind: Kind, source: str | dict[str, Any] = "", **fields: Any) -> SamplingParams:
    fields = {"max_tokens": 200, "temperature": 1.0, "seed": 1, **fields}
    return SamplingParams(constraint=Constraint(kind, source), **fields)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_a_text_is_valid_by_its_schema_and_then_ends(engine: Engine, temperature: float) -> None:
    for seed in range(5):
        params = held("json_schema", PERSON, temperature=temperature, seed=seed)
        done = finished(engine.submit("Hello", params))
        jsonschema.validate(json.loads(done.text), PERSON)
        assert done.finish_reason == "stop"


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("regex", "(yes|no), [A-Z][a-z]{2,5}", r"(yes|no), [A-Z][a-z]{2,5}"),
        ("regex", r"a/b\\[0-9]{3}", r"a/b\\[0-9]{3}"),
        (
            "gbnf",
            'root ::= "x" [\\x41-\\u0043]{3} "\\u00e9" [0-9]{1,4} "."',
            r"x[ABC]{3}é\d{1,4}\.",
        ),
        ("gbnf", 'root ::= [a-c]* "abc"{2,2}', r"[abc]*abcabc"),
        (
            "lark",
            'start: greeting ", " NAME\ngreeting: "hi" | "ho"\nNAME: /[a-z]{3}/',
            r"h[io], [a-z]{3}",
        ),
    ],
)
def test_a_text_belongs_to_its_language(
    engine: Engine, kind: Kind, source: str, expected: str
) -> None:
    for seed in range(5):
        done = finished(engine.submit("Hello", held(kind, source, seed=seed)))
        if done.finish_reason == "stop":
            assert re.fullmatch(expected, done.text)
        else:
            assert "*" in source


def test_recursion_is_counted(engine: Engine) -> None:
    params = held("gbnf", 'root ::= "(" root? ")"', temperature=3.0, max_tokens=300)
    text = finished(engine.submit("Hello", params)).text
    assert text == "(" * (len(text) // 2) + ")" * (len(text) // 2) != ""


def test_any_json_object(engine: Engine) -> None:
    for seed in range(10):
        done = finished(engine.submit("Hello", held("json_object", seed=seed, max_tokens=150)))
        if done.finish_reason == "stop":
            assert isinstance(json.loads(done.text), dict)


def test_a_control_token_can_be_part_of_a_grammar(engine: Engine) -> None:
    source = 'start: <|im_start|> /[a-z]{4}/ <|im_end|> "."'
    done = finished(engine.submit("Hello", held("lark", source, spell_special=True)))
    assert re.fullmatch(r"<\|im_start\|>[a-z]{4}(<\|im_end\|>\.)?", done.text)
    assert "<" not in finished(engine.submit("Hello", held("lark", source))).text


def test_a_control_token_spelled_out_is_not_text(engine: Engine) -> None:
    bias = engine.tokenize("<|im_start|>", add_special=False, parse_special=True)[0]
    params = held("regex", "<[|]im_start[|]>", logit_bias={bias: 100.0}, record_tokens=True)
    generation = engine.submit("Hello", params)
    assert finished(generation).text == "<|im_start|>"
    assert bias not in [record.token for record in generation.take_tokens()]


def test_a_text_ends_only_where_its_grammar_allows(engine: Engine) -> None:
    eos = engine.info().eos_token
    assert eos is not None
    eager = held("regex", "[a-z]{5,}", logit_bias={eos: 100.0})
    done = finished(engine.submit("Hello", eager))
    assert re.fullmatch("[a-z]{5,}", done.text)
    assert done.finish_reason == "stop"


def test_a_text_that_may_only_end_ends_even_if_it_should_not(engine: Engine) -> None:
    done = finished(engine.submit("Hello", held("regex", "yes|no", ignore_eos=True)))
    assert done.text in ("yes", "no")
    assert done.finish_reason == "stop"


def test_forced_tokens_are_generated_tokens(engine: Engine) -> None:
    text = "an answer of quite a few tokens, all of them known"
    generation = engine.submit("Hello", held("regex", text, record_tokens=True))
    done = finished(generation)
    records = generation.take_tokens()
    assert done.text == text == b"".join(record.piece for record in records).decode()
    assert done.usage.completion_tokens == len(records) > 5


def test_forced_tokens_save_steps(load: Loader, model_path: Path) -> None:
    engine = load(model_path, parallel=1, ctx_size=256)
    done = finished(engine.submit("Hello", held("regex", "an answer of quite a few tokens")))
    assert engine.stats().steps < done.usage.completion_tokens
    assert engine.stats().completion_tokens == done.usage.completion_tokens


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_max_tokens_counts_forced_tokens(engine: Engine, count: int) -> None:
    text = "an answer of quite a few tokens, all of them known"
    params = held("regex", text, max_tokens=count, record_tokens=True)
    generation = engine.submit("Hello", params)
    done = finished(generation)
    assert done.usage.completion_tokens == count == len(generation.take_tokens())
    assert text.startswith(done.text)
    assert done.finish_reason == "length"


def test_a_text_that_is_complete_with_its_last_token_has_stopped(engine: Engine) -> None:
    whole = finished(engine.submit("Hello", held("regex", "yes, it is")))
    params = held("regex", "yes, it is", max_tokens=whole.usage.completion_tokens)
    assert finished(engine.submit("Hello", params)).finish_reason == "stop"


def test_a_stop_string_ends_a_constrained_text(engine: Engine) -> None:
    done = finished(engine.submit("Hello", held("regex", "one, two, three", stop=(", thr",))))
    assert (done.text, done.finish_reason) == ("one, two", "stop")


def test_logprobs_are_the_models_own_and_one_token_is_recorded_a_step(engine: Engine) -> None:
    free = engine.submit("Hello", greedy(1, logprobs=5))
    finished(free)
    generation = engine.submit("Hello", held("regex", "yes, it is", logprobs=5))
    assert finished(generation).text == "yes, it is"
    records = generation.take_tokens()
    assert b"".join(record.piece for record in records) == b"yes, it is"
    assert records[0].top == free.take_tokens()[0].top
    assert all(record.logprob < 0.0 for record in records)


def test_penalties_and_constraints_go_together(engine: Engine) -> None:
    penalized = held("json_schema", PERSON, repetition_penalty=1.5, frequency_penalty=1.0)
    jsonschema.validate(json.loads(finished(engine.submit("Hello", penalized)).text), PERSON)


def test_a_bias_against_all_that_is_allowed_is_an_error_of_its_request_alone(
    engine: Engine,
) -> None:
    other = engine.submit("Hello", greedy(30))
    bias = dict.fromkeys(range(engine.info().vocab_size), -float("inf"))
    for temperature in (0.0, 1.0):
        broken = engine.submit(
            "Hello", held("regex", "yes", logit_bias=bias, temperature=temperature)
        )
        with pytest.raises(InvalidRequest, match="both the constraint and logit_bias allow"):
            finished(broken)
    assert finished(other).usage.completion_tokens == 30


def test_free_texts_are_the_same_beside_constrained_ones(engine: Engine) -> None:
    params = SamplingParams(max_tokens=60, temperature=1.2, seed=9, ignore_eos=True)
    alone = finished(engine.submit("Hello", params)).text
    others = [engine.submit("Hello", held("json_schema", PERSON, seed=seed)) for seed in range(8)]
    assert finished(engine.submit("Hello", params)).text == alone
    for other in others:
        jsonschema.validate(json.loads(finished(other).text), PERSON)


def test_a_text_whose_every_token_may_be_its_last_ends(engine: Engine) -> None:
    """A word in free text is accepted with the next mask, which finds that nothing may follow."""
    grammar = "start: text\ntext[max_tokens=5]: /(.|\\n)*/"
    for seed in range(8):
        done = finished(engine.submit("Hello", held("lark", grammar, seed=seed, ignore_eos=True)))
        assert (done.finish_reason, done.usage.completion_tokens) == ("stop", 5)


def test_constrained_rows_are_filtered_with_the_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is chosen is the same as alone."""
    free = 'start: (call "x" NAME ">")* TEXT\ncall[lazy]: TEXT "<call"\n'
    free += "TEXT: /(.|\\n)*/\nNAME: /[a-z]{2}/"
    asked = [
        *(held("lark", free, seed=seed, max_tokens=30) for seed in range(3)),
        *(held("json_schema", PERSON, seed=seed) for seed in range(3)),
        *(SamplingParams(max_tokens=30, seed=seed) for seed in range(2)),
    ]
    alone = [finished(engine.submit("Hello", params)).text for params in asked]
    constrained, choose_among = 0, Sequence.choose_among

    def counted(sequence: Sequence, found: Any) -> list[int]:
        nonlocal constrained
        constrained += sequence.guide is not None
        return choose_among(sequence, found)

    monkeypatch.setattr(Sequence, "choose_among", counted)
    together = [engine.submit("Hello", params) for params in asked]
    assert [finished(generation).text for generation in together] == alone
    assert constrained > 30


@pytest.mark.parametrize("top_k", [40, 400])
def test_few_forbidden_tokens_are_looked_for_among_the_best(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    """And what is chosen is the same as where their logits are removed first."""
    near = dict.fromkeys(engine.tokenize("a.b,c d e", add_special=False), 20.0)
    asked = [
        held("lark", "start: TEXT\nTEXT: /[^.,]*/", seed=seed, top_k=top_k, logit_bias=near)
        for seed in range(6)
    ]
    asked = [replace(each, max_tokens=40, temperature=3.0) for each in asked]
    refused, allows = 0, Guide.allows

    def counted(guide: Guide, positions: Iterable[int], first: int) -> bool:
        nonlocal refused
        allowed = allows(guide, positions, first)
        refused += not allowed
        return allowed

    def texts() -> list[str]:
        together = [engine.submit("Hello", params) for params in asked]
        return [finished(generation).text for generation in together]

    monkeypatch.setattr(Guide, "allows", counted)
    found = texts()
    assert refused > 10 and not any("." in text or "," in text for text in found)
    refused = 0
    monkeypatch.setattr(Guide, "forbids_few", False)
    assert texts() == found
    assert not refused


def test_sentences_in_free_text_are_accepted_with_the_next_mask(engine: Engine) -> None:
    """Which has the same masks and the same text as accepting each at once."""
    grammar = 'start: (call "x" NAME ">")* TEXT\ncall[lazy]: TEXT "<call"\n'
    grammar += "TEXT: /(.|\\n)*/\nNAME: /[a-z]{2}/"
    text = " Once a fox lived here.<callxab> The end <callxcd> and so on"
    late, at_once = (engine._grammars.guide(Constraint("lark", grammar)) for _ in range(2))
    left = 0
    for token in engine.tokenize(text, add_special=False):
        assert (late.forbidden() == at_once.forbidden()).all()
        assert not late.forbidden()[token]
        late.accept(token, 0, engine._vocab.is_prose(token))
        left += late._later is not None
        at_once.accept(token)
        assert not (late.ended or at_once.ended)
    assert left >= 5


def test_sentences_have_letters_of_all_languages_and_their_marks(engine: Engine) -> None:
    for text in (" fox", ", 3.5!", "é", "\n"):
        assert all(map(engine._vocab.is_prose, engine.tokenize(text, add_special=False))), text
    for text in ("<", "{", '"', "]", "="):
        assert not engine._vocab.is_prose(engine.tokenize(text, add_special=False)[-1]), text
    assert not engine._vocab.is_prose(engine.info().eos_token or 0)


def test_a_stream_is_the_whole_text(engine: Engine) -> None:
    whole = finished(engine.submit("Hello", held("json_schema", PERSON))).text
    watched = Watched(engine, "Hello", held("json_schema", PERSON))
    pieces: list[str] = []
    while not watched.generation.done:
        pieces += watched.generation.take()
        watched.wait_for_tokens(1)
    pieces += watched.generation.take()
    assert "".join(pieces) == whole


def test_a_preempted_text_goes_on_in_its_grammar(load: Loader, memoryless_path: Path) -> None:
    crowded = load(memoryless_path, parallel=4, ctx_size=256, kv_unified=True, kv_cells=512)
    roomy = load(memoryless_path, parallel=1, ctx_size=256)
    params = held("regex", "([a-z]+ )+[.]", max_tokens=150)
    expected = [
        finished(roomy.submit(f"Story {i}", replace(params, seed=i))).text for i in range(5)
    ]
    together = [crowded.submit(f"Story {i}", replace(params, seed=i)) for i in range(5)]
    assert [finished(generation).text for generation in together] == expected
    assert crowded.stats().preemptions > 0, "otherwise this test has tested nothing"


def test_a_constrained_text_can_be_cancelled(engine: Engine) -> None:
    watched = Watched(engine, "Hello", held("regex", "[a-z]+", max_tokens=400))
    watched.wait_for_tokens(3)
    watched.generation.cancel()
    watched.wait_until_done()
    assert re.fullmatch("[a-z]*", finished(watched.generation).text)


def test_a_step_that_fails_leaves_no_mask_behind(load: Loader, model_path: Path) -> None:
    engine = load(model_path, parallel=2, ctx_size=256)
    expected = finished(engine.submit("Hello", held("json_schema", PERSON))).text
    break_decode(engine, [0, 0, RuntimeError("made up")])
    broken = engine.submit("Hello", held("json_schema", PERSON))
    with pytest.raises(EngineError, match="made up"):
        finished(broken)
    assert finished(engine.submit("Hello", held("json_schema", PERSON))).text == expected


def test_a_mask_that_cannot_be_computed_holds_nobody_up(engine: Engine) -> None:
    good = engine._grammars.guide(Constraint("json_object"))
    too_short = Guide(good._matcher, 1)  # for a vocabulary of one token
    with pytest.raises(ValueError, match="buffer"):
        too_short.forbidden()
    masks = MaskThread()
    done = threading.Event()

    def twice() -> None:
        for _ in range(2):
            masks.start([too_short])
            masks.wait()
        done.set()

    threading.Thread(target=twice, daemon=True).start()
    assert done.wait(WAIT)
    masks.close()


def test_the_thread_for_masks_ends_with_its_engine(model_path: Path) -> None:
    before = threading.active_count()
    with Engine.load(model_path, parallel=1, ctx_size=256) as loaded:
        finished(loaded.submit("Hello", held("regex", "yes|no")))
        assert "cllm-masks" in [thread.name for thread in threading.enumerate()]
    assert threading.active_count() == before
    with pytest.raises(EngineClosed):
        loaded.check_constraint(Constraint("regex", "yes"))


@pytest.mark.parametrize(
    ("keyword", "schema"),
    [
        (keyword, {"type": "object", "properties": {"a": {"anyOf": [{keyword: value}]}}})
        for keyword, value in {
            "not": {"type": "string"},
            "uniqueItems": True,
            "contains": {"type": "integer"},
            "propertyNames": {"anyOf": [{"maxLength": 3}, {"pattern": "^a"}]},
            "dependentRequired": {"a": ["b"]},
            "unevaluatedProperties": {"type": "string"},
            "unevaluatedItems": False,
            "$dynamicRef": "#a",
            "maxLenght": 5,
            "exclusiveMinimum": True,
            "minLength": -1,
            "multipleOf": 1_234_567,
            "$ref": "https://example.com/schema",
            "type": "strin",
            "pattern": "(?=a)b",
            "properties": {"c": {"type": "array", "uniqueItems": True}},
        }.items()
    ],
)
def test_a_keyword_that_cannot_be_held_is_named(
    engine: Engine, keyword: str, schema: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.submit("Hello", held("json_schema", schema))
    assert caught.value.field == "json_schema"
    named = {"properties": "uniqueItems", "pattern": "look-ahead"}.get(keyword, keyword)
    assert named in str(caught.value)
    assert "(at /properties/a/anyOf/0" in str(caught.value)


def test_what_only_describes_is_no_hindrance(engine: Engine) -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Answer",
        "description": "yes or no",
        "type": "string",
        "enum": ["yes", "no"],
        "default": "no",
        "examples": ["yes"],
    }
    assert json.loads(finished(engine.submit("Hi", held("json_schema", schema))).text) in (
        "yes",
        "no",
    )


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", "{"),
        ("json_schema", "[]"),
        ("json_schema", '{"type": "string", "minLength": 3, "maxLength": 1}'),
        ("json_schema", '{"enum": []}'),
        ("json_schema", '{"properties": []}'),
        ("json_schema", '{"anyOf": {}}'),
        ("gbnf", 'root ::= "a'),
        ("gbnf", 'roots ::= "a"'),
        ("gbnf", 'root ::= "a" <[5]>'),
        ("gbnf", "root ::= <think> .*"),
        ("gbnf", "root ::= !<[5]>*"),
        ("gbnf", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
        ("regex", "(a"),
        ("regex", "(?=a)b"),
        ("lark", "start: undefined"),
        ("lark", "start: <|no_such_token|>"),
    ],
)
def test_a_constraint_that_cannot_be_read_is_refused(
    engine: Engine, kind: Kind, source: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.check_constraint(Constraint(kind, source))
    assert caught.value.field == kind


@pytest.mark.parametrize(
    ("kind", "source"), [("yaml", ""), ("regex", 5), ("regex", "a" * (MAX_SOURCE + 1)), (None, "")]
)
def test_what_is_no_constraint_is_refused(kind: Any, source: Any) -> None:
    with pytest.raises(InvalidRequest):
        Constraint(kind, source)
    with pytest.raises(InvalidRequest, match="constraint"):
        SamplingParams(constraint="yes")  # type: ignore[arg-type]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chained(length: int) -> dict[str, Any]:
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


HOSTILE: dict[str, tuple[Kind, Any]] = {
    "nested": ("json_schema", nested(65)),
    "chained": ("json_schema", chained(4000)),
    "intersected": (
        "json_schema",
        {"allOf": [{"pattern": f".*{chr(97 + i)}.{{{i}}}"} for i in range(20)]},
    ),
    "many values": ("json_schema", {"enum": [f"value {i}" for i in range(100_000)]}),
    "many properties": ("json_schema", {"properties": {f"p{i}": {} for i in range(6000)}}),
    "parentheses": ("regex", "(" * 100_000 + "a" + ")" * 100_000),
    "many rules": (
        "lark",
        "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(9000)) + 'r9000: "a"',
    ),
    "many gbnf rules": (
        "gbnf",
        "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(9000)) + 'r9000 ::= "a"',
    ),
}


@pytest.mark.parametrize("constraint", HOSTILE.values(), ids=HOSTILE)
def test_hostile_constraints_are_refused(engine: Engine, constraint: tuple[Kind, Any]) -> None:
    with pytest.raises(InvalidRequest):
        engine.check_constraint(Constraint(*constraint))
    assert finished(engine.submit("Hello", greedy(2))).usage.completion_tokens == 2


AMBIGUOUS = """root ::= word
word ::= word word | [a-z] | word word word"""


def test_a_constraint_that_is_slow_at_every_token_is_given_up(engine: Engine) -> None:
    """Each mask alone is quick enough; together they would take a minute."""
    other = engine.submit("Hello", greedy(40))
    slow = engine.submit("Hello", held("gbnf", AMBIGUOUS, max_tokens=400, temperature=2.0))
    with pytest.raises(TooIntricate, match="more than 5 ms a token"):
        slow.result(WAIT)
    assert finished(other).usage.completion_tokens == 40


def test_an_error_of_the_matcher_is_no_end_of_the_text(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of masks meets it while it accepts a word that was left for later."""
    monkeypatch.setattr("cllm.engine.constraints.guide.BURST_S", 50.0)
    rules = [
        f"r{i}: /(.|\\n)/ r{(i * 7 + 1) % 60} | r{(i * 3 + 2) % 60} r{(i * 5 + 4) % 60} | /(.|\\n)/"
        for i in range(60)
    ]
    grammar = "start: " + " | ".join(f"r{i}" for i in range(60)) + "\n" + "\n".join(rules)
    params = SamplingParams(max_tokens=60, seed=1, constraint=Constraint("lark", grammar))
    with pytest.raises(TooIntricate, match="Too many items"):
        engine.submit("Hello", params).result(WAIT)


def test_a_rule_for_json_can_stand_in_a_grammar(engine: Engine) -> None:
    source = f'start: "<call>" {json_rule(PERSON)} "</call>"'
    text = finished(engine.submit("Hello", held("lark", source))).text
    jsonschema.validate(json.loads(text.removeprefix("<call>").removesuffix("</call>")), PERSON)
    with pytest.raises(InvalidRequest, match="uniqueItems"):
        json_rule({"type": "array", "uniqueItems": True})


def test_the_rule_of_a_schema_is_the_same_when_it_comes_again() -> None:
    for schema in (PERSON, {"type": "array", "items": {"type": ["integer", "null"]}}, True, {}):
        assert json_rule(schema) == json_rule(schema) == lark_expression(schema)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="uniqueItems"):
            json_rule({"type": "array", "uniqueItems": True})


def test_equal_constraints_are_compiled_once(engine: Engine) -> None:
    engine.check_constraint(Constraint("json_schema", PERSON))
    kept = engine._grammars._kept
    count = len(kept)
    engine.check_constraint(Constraint("json_schema", json.dumps(PERSON)))
    assert len(kept) == count
    for i in range(100):
        engine.check_constraint(Constraint("regex", f"number {i}"))
    assert len(kept) == 64
