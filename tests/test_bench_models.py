"""What `scripts.bench make-model` promises: a model of the shape asked for that really runs."""

from __future__ import annotations

import hashlib
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from cllm.engine import Engine
from cllm.models import demo_path

ROOT = Path(__file__).resolve().parent.parent


def make(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.bench", "make-model", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def made(*arguments: str | Path) -> str:
    result = make(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    said = made("--shape", "tiny", path)
    assert str(path) in said
    assert os.listdir(path.parent) == [path.name]  # and not the weights it was made from
    return path


def test_the_model_has_the_shape_and_is_stored_as_asked(tiny: Path) -> None:
    with Engine.load(tiny, parallel=1, threads=1) as engine:
        info = engine.info()
    assert info.architecture == "qwen3"
    assert (info.hidden_size, info.num_layers) == (256, 2)
    assert (info.num_attention_heads, info.num_key_value_heads) == (4, 2)
    assert info.intermediate_size == 512
    assert info.vocab_size == 4096
    assert info.rope_theta == 1e6
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tiny).tensors}
    assert kinds == {"F32", "Q4_K", "Q6_K"}


def test_it_speaks_and_any_text_can_be_written_in_its_vocabulary(tiny: Path) -> None:
    with Engine.load(tiny, parallel=1, threads=1) as engine:
        completion = engine.generate("hello there", max_tokens=60, temperature=0.0)
        assert completion.usage.completion_tokens == 60
        tokens = engine.tokenize(completion.text, add_special=False)
        assert len(set(tokens)) > 30
        for text in ("hello there, two  spaces", "你好 🙂\n\0 <|im_end|>"):
            assert engine.detokenize(engine.tokenize(text)) == text
        assert len(engine.tokenize("ab", add_special=False)) == 1


def test_a_hybrid_model_speaks(tmp_path: Path) -> None:
    path = tmp_path / "hybrid.gguf"
    made("--shape", "tiny-hybrid", path)
    with Engine.load(path, parallel=1, threads=1) as engine:
        completion = engine.generate("hello there", max_tokens=60, temperature=0.0)
        assert completion.usage.completion_tokens == 60
        assert len(set(engine.tokenize(completion.text, add_special=False))) > 30
        assert engine.info().architecture == "lfm2"


def test_a_copying_model_goes_on_with_a_text_of_its_prompt(tmp_path: Path) -> None:
    path = tmp_path / "copying.gguf"
    made("--shape", "tiny", "--copying", path)
    dice = random.Random(1)
    words = ["".join(dice.choices(string.ascii_lowercase, k=2)) for _ in range(100)]
    prompt = " ".join(words) + "\n" + " ".join(words[:12])
    with Engine.load(path, parallel=1, threads=1) as engine:
        said = engine.generate(prompt, max_tokens=60, temperature=0.0).text
    assert said == " " + " ".join(words[12:72])


def test_a_shape_that_cannot_copy_is_refused_in_one_line(tmp_path: Path) -> None:
    result = make("--shape", "llama-1b", "--copying", tmp_path / "out.gguf")
    assert result.returncode == 2
    assert "qwen3" in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_vocabulary_of_another_model_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    made("--shape", "tiny", "--type", "q8_0", "--vocab-from", demo_path(), path)
    text = "the people of the world 🌍"
    with Engine.load(path, parallel=1) as copied, Engine.load(demo_path(), parallel=1) as own:
        assert copied.info().vocab_size == own.info().vocab_size
        assert copied.info().chat_template == own.info().chat_template
        assert copied.tokenize(text) == own.tokenize(text)


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        made("--shape", "tiny", "--type", "F16", "--seed", seed, tmp_path / name)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).digest())
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_a_file_is_only_replaced_by_force(tmp_path: Path) -> None:
    path = tmp_path / "precious.gguf"
    path.write_text("precious")
    refused = make("--shape", "tiny", path)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert path.read_text() == "precious"
    made("--shape", "tiny", "--force", path)
    assert path.read_bytes()[:4] == b"GGUF"


def test_a_bad_source_of_the_vocabulary_is_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "not.gguf"
    bad.write_text("this is not a model file at all, whatever its name")
    for source in (bad, tmp_path / "missing.gguf"):
        result = make("--shape", "tiny", "--vocab-from", source, tmp_path / "out.gguf")
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("error: ")
    assert sorted(os.listdir(tmp_path)) == ["not.gguf"]


def test_a_deeper_model_says_the_same(tiny: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep.gguf"
    assert "5 layers" in made("--deepen", tiny, "--layers", "5", deep)
    texts = []
    for path, layers in ((tiny, 2), (deep, 7)):
        with Engine.load(path, parallel=1, threads=1) as engine:
            assert engine.info().num_layers == layers
            texts.append(engine.generate("hello there", max_tokens=20, temperature=0.0).text)
    assert texts[0] == texts[1]


def test_what_cannot_be_deepened_is_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "not.gguf"
    bad.write_text("this is not a model file at all, whatever its name")
    for source in (bad, tmp_path / "missing.gguf"):
        result = make("--deepen", source, tmp_path / "out.gguf")
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")
    assert sorted(os.listdir(tmp_path)) == ["not.gguf"]


def test_help_names_every_shape() -> None:
    text = made("--help")
    for name in ("qwen3-0.6b", "qwen3-1.7b", "llama-1b", "tiny"):
        assert name in text
