"""The built-in model: it loads, tells what it was asked for, answers, says its limit, and ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from cllm.engine import Engine
from cllm.models import demo_path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from demo_model import phrases_en, phrases_zh  # noqa: E402
from demo_model.checker import Verdict, check  # noqa: E402

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


def test_the_file_is_small_and_says_what_it_is() -> None:
    assert demo_path().stat().st_size <= 5_000_000
    fields = gguf.GGUFReader(demo_path()).fields
    text = {name: field.contents() for name, field in fields.items() if "tokens" not in name}
    assert text["general.architecture"] == "qwen3"
    assert text["general.license"] == "mit"
    assert "grammar" in text["cllm.made_by"]
    assert text["qwen3.context_length"] >= 2048
    assert {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"} <= set(text)
    assert all(role in text["tokenizer.chat_template"] for role in ("role", "content", "assistant"))


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
    for start, language in (("Once upon a time", "en"), ("从前", "zh")):
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
