"""What the built-in model promises: there at once, one for all, for any text, lively, strict."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.engine import Engine, SamplingParams, builtin
from cllm.engine.builtin import builtin_path
from cllm.engine.user_cache import replacing, user_cache


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0)


SAMPLES = [
    " leading and trailing ",
    "\n\n\ttabs\r\nand lines\n",
    "a\0NUL\0",
    "e\u0301 combining, \u200d joiner, \ufeff BOM",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🙂",
    "你好，世界 한국어 العربية हिन्दी",
    "<|im_end|><|endoftext|> as text",
    "1234567890 3.14e-10",
    "it's WE'LL don't",
    "\ufffd\U0010ffff\ue000",
    "many      spaces",
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(builtin_path(), parallel=1, threads=1) as engine:
        yield engine


def test_it_is_made_once_and_found_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = builtin_path()
    assert path.parent == tmp_path / "cllm"
    made = path.stat()
    assert made.st_size < 4 * 2**20
    assert builtin_path() == path
    assert path.stat().st_ino == made.st_ino


def test_it_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        builtin.write(tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).digest())
    assert len(digests) == 1


def test_processes_may_make_it_at_the_same_time(tmp_path: Path) -> None:
    code = "from cllm.engine.builtin import builtin_path as p; print(p().read_bytes()[:4], p())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def run(_: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment, capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        outputs = set(pool.map(run, range(4)))
    assert len(outputs) == 1
    assert outputs.pop().startswith("b'GGUF'")
    assert len(os.listdir(tmp_path / "cllm")) == 1


def test_without_a_home_to_write_to_it_goes_to_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = builtin_path()
    assert path.is_file()
    assert tmp_path in path.parents
    assert builtin_path() == path


def test_a_temporary_directory_that_others_prepared_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"cllm-{os.getuid()}").mkdir()
    (tmp_path / f"cllm-{os.getuid()}").chmod(0o777)
    assert user_cache() != tmp_path / f"cllm-{os.getuid()}"


def test_a_relative_cache_directory_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "cllm"


def test_a_file_that_fails_half_way_is_never_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as part:
        part.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_it_says_what_it_is() -> None:
    reader = gguf.GGUFReader(builtin_path())

    def value(key: str) -> object:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    assert value("general.architecture") == "llama"
    assert value("general.name") == "cLLM built-in"
    assert value("general.license")
    assert value("general.description")
    assert value("llama.context_length") == 2048
    assert "<|im_start|>" in str(value("tokenizer.chat_template"))
    kinds = {tensor.tensor_type for tensor in reader.tensors}
    assert kinds == {gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32}


@pytest.mark.parametrize("text", SAMPLES)
def test_every_text_comes_back_as_it_was(engine: Engine, text: str) -> None:
    assert engine.detokenize(engine.tokenize(text)) == text


@given(st.text())
def test_any_unicode_comes_back_as_it_was(engine: Engine, text: str) -> None:
    assert engine.detokenize(engine.tokenize(text)) == text


def test_common_words_take_one_token_each(engine: Engine) -> None:
    text = " people think about the answer"
    assert len(engine.tokenize(text, add_special=False)) == 5


def test_control_tokens_in_a_text_are_text_unless_asked_for(engine: Engine) -> None:
    for name in builtin.CONTROL:
        assert len(engine.tokenize(name, add_special=False)) > 1
        assert len(engine.tokenize(name, add_special=False, parse_special=True)) == 1


def test_it_says_different_things_and_does_not_stop_of_itself(engine: Engine) -> None:
    said = set()
    for prompt in ("Once upon a time", "Hello", "The capital of France is", "1 + 1 ="):
        generation = engine.submit(prompt, greedy(200))
        completion = generation.result(timeout=60)
        assert completion.finish_reason == "length"
        words = completion.text.split()
        assert len(set(words)) > 30
        said.add(completion.text)
    assert len(said) == 4


def test_what_it_says_depends_on_the_whole_text_before(engine: Engine) -> None:
    """So that a mistake anywhere in the key/value cache shows in the text."""
    prompt = engine.tokenize("the people of the land " * 40)
    expected = engine.submit(prompt, greedy(40)).result(timeout=60).text
    for place in (1, len(prompt) // 2, len(prompt) - 10):
        changed = list(prompt)
        changed[place] = engine.tokenize("!", add_special=False)[0]
        assert engine.submit(changed, greedy(40)).result(timeout=60).text != expected
