"""The built-in model: it loads, tells requested stories, answers, states its limit, and ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import gguf
import pytest

from cllm.api.chat.chat_template import ChatTemplate
from cllm.engine import Engine, SamplingParams
from cllm.models import demo_path
from scripts.story_model import phrases_en, phrases_zh
from scripts.story_model.checker import Verdict, check
from scripts.story_model.plan import make_plan
from scripts.story_model.surfaces import tell
from tests.engine.engine_helpers import Watched

FOX_EN = "Tell me a story about a fox and a lantern."
FOX_ZH = "给我讲一个关于狐狸和灯笼的故事"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(demo_path(), parallel=2, ctx_size=2048, threads=2) as loaded:
        yield loaded


def chat(engine: Engine, *turns: str) -> list[int]:
    """The tokens of user and assistant turns in the model's chat format, the next one open."""
    roles = ("user", "assistant")
    text = "".join(
        f"<|im_start|>{roles[number % 2]}\n{turn}<|im_end|>\n" for number, turn in enumerate(turns)
    )
    return engine.tokenize(text + "<|im_start|>assistant\n", parse_special=True)


def ask(engine: Engine, *turns: str, temperature: float = 0.0, seed: int = 1) -> str:
    reply = engine.generate(
        chat(engine, *turns), max_tokens=400, temperature=temperature, seed=seed
    )
    assert reply.finish_reason == "stop"
    return reply.text


def story(engine: Engine, asked: str, language: str) -> tuple[str, Verdict]:
    text = ask(engine, asked)
    verdict = check(text, language)
    assert verdict.accepted, (verdict.reason, text)
    return text, verdict


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_checker_accepts_what_the_grammar_tells_and_no_needless_helper(language: str) -> None:
    rng = random.Random(1)
    helped = 0
    while helped < 20:
        plan = make_plan(rng, language)
        assert check(tell(plan, rng), language).accepted
        if plan.skill and len({*plan.hero.kind.pronouns_en, *plan.friend.kind.pronouns_en}) == 2:
            helped += 1
            able = replace(plan, hero=replace(plan.hero, kind=plan.friend.kind))
            assert check(tell(able, rng), language).reason == "the hero could have done that"


def test_the_file_is_small_and_says_what_it_is() -> None:
    assert demo_path().stat().st_size <= 5_000_000
    fields = gguf.GGUFReader(demo_path()).fields
    text = {name: field.contents() for name, field in fields.items() if "tokens" not in name}
    assert text["general.architecture"] == "qwen3"
    assert text["general.license"] == "mit"
    assert "grammar" in text["cllm.made_by"]
    assert text["qwen3.context_length"] >= 2048
    assert {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"} <= set(text)
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]
    assert ChatTemplate(text["tokenizer.chat_template"]).render(turns) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n"
        "<|im_start|>assistant\na<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "text", ["Once upon a time", "从前有一只小狐狸", "né ß Ω я ह ไ あ 한 🦊\n\t\x00\x7f", "𓀀𝔘 «»"]
)
def test_any_text_comes_back_from_its_tokens(engine: Engine, text: str) -> None:
    tokens = engine.tokenize(text, add_special=False)
    assert engine.detokenize(tokens, special=False) == text


def test_it_tells_the_story_that_was_asked_for(engine: Engine) -> None:
    text, verdict = story(engine, FOX_EN, "en")
    assert text.startswith("The fox and the lantern\n\n")
    assert (verdict.words["K"], verdict.words["O"]) == ("fox", "lantern")
    text, verdict = story(engine, FOX_ZH, "zh")
    assert text.startswith("《小狐狸和灯笼》\n\n")
    assert verdict.words["O"] == "灯笼"


def test_it_answers_from_the_story(engine: Engine) -> None:
    text, verdict = story(engine, FOX_EN, "en")
    names = (verdict.words["H"], verdict.words["F"])
    assert all(name in ask(engine, FOX_EN, text, "Who is in it?") for name in names)
    assert any(name in ask(engine, FOX_EN, text, "What happened next?") for name in names)
    text, verdict = story(engine, FOX_ZH, "zh")
    names = (verdict.words["H"], verdict.words["F"])
    assert all(name in ask(engine, FOX_ZH, text, "故事里有谁？") for name in names)
    assert any(name in ask(engine, FOX_ZH, text, "后来呢？") for name in names)


def test_a_beginning_is_continued_without_a_chat_format(engine: Engine) -> None:
    for start, language in (("Once upon a time", "en"), ("从前，在", "zh")):
        reply = engine.generate(start, max_tokens=400, temperature=0)
        assert reply.finish_reason == "stop"
        assert check(start + reply.text, language).accepted, start + reply.text


def test_a_bare_request_gets_a_story(engine: Engine) -> None:
    reply = engine.generate(FOX_EN, max_tokens=400, temperature=0)
    assert reply.finish_reason == "stop"
    assert check(reply.text.strip(), "en").accepted, reply.text


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("asked", "limits"),
    [
        ("What is the capital of France?", phrases_en.LIMITS),
        ("def main():\n    return 12 * 7", phrases_en.LIMITS),
        ("怎么修理电脑？", phrases_zh.LIMITS),
    ],
)
def test_the_rest_gets_the_limit(
    engine: Engine, asked: str, limits: tuple[str, ...], seed: int
) -> None:
    assert ask(engine, asked, temperature=0.8, seed=seed) in limits


@pytest.mark.parametrize("asked", ["Hello!", "你好"])
def test_a_greeting_is_returned(engine: Engine, asked: str) -> None:
    assert ask(engine, asked) in (*phrases_en.GREETING_REPLIES, *phrases_zh.GREETING_REPLIES)


@pytest.mark.parametrize(
    ("beginning", "continuation"),
    [
        ("Once upon a time, in a quiet forest, there lived a little fox", " named Pip."),
        ("从前，在一片安静的森林里，住着一只小狐狸", "，名字叫豆豆。"),
    ],
)
def test_the_likeliest_continuation_is_known(
    engine: Engine, beginning: str, continuation: str
) -> None:
    reply = engine.generate(beginning, max_tokens=30, temperature=0)
    assert reply.text.startswith(continuation)


def test_a_stop_string_ends_the_story_before_it(engine: Engine) -> None:
    whole = ask(engine, FOX_EN)
    for stop in (". ", "lantern", "\n\n"):
        reply = engine.generate(chat(engine, FOX_EN), max_tokens=400, temperature=0, stop=[stop])
        assert reply.finish_reason == "stop"
        assert reply.text == whole[: whole.index(stop)]


def test_an_end_of_turn_ends_and_is_no_text(engine: Engine) -> None:
    for asked in (FOX_EN, FOX_ZH):
        reply = engine.generate(chat(engine, asked), max_tokens=400, temperature=0)
        assert reply.finish_reason == "stop"
        assert not reply.text.endswith("<|im_end|>")
        # Its token is counted: the text again has one fewer.
        again = engine.tokenize(reply.text, add_special=False)
        assert reply.usage.completion_tokens == len(again) + 1


def test_chinese_comes_in_whole_characters(engine: Engine) -> None:
    params = SamplingParams(max_tokens=400, temperature=0.0)
    watched = Watched(engine, chat(engine, FOX_ZH), params)
    watched.wait_until_done()
    generation = watched.generation
    deltas = generation.take()
    # Fewer than there are tokens before the end: some characters took several.
    assert len(deltas) < generation.usage.completion_tokens - 1
    assert not any("\ufffd" in delta for delta in deltas)
    assert check("".join(deltas), "zh").accepted
