"""Loading a draft model: one that does not suit is refused by name, with a remedy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, ModelLoadError
from cllm.models import demo_path
from tests.embedding_models import bert
from tests.engine.engine_helpers import Loader, finished, greedy
from tests.engine.engine_models import write_recurrent
from tests.random_model import random_path

SMALL: dict[str, Any] = {"parallel": 2, "ctx_size": 256, "threads": 1}


def refusal(main: Path, draft: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        Engine.load(main, **SMALL, model_draft=str(draft))
    message = str(caught.value)
    assert "--model-draft" in message
    assert "\n" not in message
    assert ";" in message, "a remedy follows the reason"
    return message


def test_what_is_no_model_is_refused_before_the_main_one_is_loaded(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 a zip archive")
    fractions: list[float] = []
    for draft, word in ((tmp_path / "absent.gguf", "absent.gguf"), (other, "GGUF")):
        assert word in refusal(random_path(), draft)
        with pytest.raises(ModelLoadError):
            Engine.load(random_path(), model_draft=str(draft), progress=fractions.append)
    assert fractions == []


def test_a_file_cut_short_is_refused(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(model_path.read_bytes()[:-4096])
    assert "download it again" in refusal(model_path, path)


def test_another_vocabulary_is_refused_and_both_files_are_named(model_path: Path) -> None:
    for main, draft in ((model_path, demo_path()), (demo_path(), model_path)):
        message = refusal(main, draft)
        assert "vocabular" in message
        assert main.name in message and draft.name in message


def test_the_same_number_of_other_tokens_is_refused(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "respelled.gguf"
    path.write_bytes(
        model_path.read_bytes().replace("\u0120world".encode(), "\u0120w0rld".encode())
    )
    assert "w0rld" in refusal(model_path, path)


@pytest.mark.usefixtures("steady_costs")
@pytest.mark.parametrize("more", [True, False])
def test_a_few_tokens_more_on_either_side_are_no_hindrance(load: Loader, more: bool) -> None:
    draft = str(random_path(fim=more))
    engine = load(random_path(fim=not more), **SMALL, model_draft=draft)
    done = finished(engine.submit("Hello there", greedy(20)))
    assert done.usage.completion_tokens == 20
    assert engine.stats().draft_s > 0


def test_models_that_cannot_roll_back_a_draft_are_refused(model_path: Path, tmp_path: Path) -> None:
    recurrent = tmp_path / "recurrent.gguf"
    write_recurrent(model_path, recurrent)
    assert recurrent.name in refusal(model_path, recurrent)
    assert recurrent.name in refusal(recurrent, model_path)


def test_models_that_embed_are_refused_on_either_side(model_path: Path) -> None:
    assert bert().name in refusal(model_path, bert())
    assert bert().name in refusal(bert(), model_path)


def test_draft_max_0_turns_it_off(load: Loader, model_path: Path, tmp_path: Path) -> None:
    engine = load(model_path, **SMALL, draft_max=0, model_draft=str(tmp_path / "absent.gguf"))
    assert engine.info().context.model_draft is None
    generation = engine.submit("Hello", greedy(20))
    finished(generation)
    assert generation.guessed == 0


def test_the_draft_model_is_told_of_without_its_folder(load: Loader, model_path: Path) -> None:
    engine = load(model_path, **SMALL, model_draft=str(model_path))
    assert engine.info().context.model_draft == model_path.name


def test_its_cache_counts_in_the_memory_budget(load: Loader, model_path: Path) -> None:
    sizes: dict[str | None, int] = {}
    for draft in (None, str(model_path)):
        engine = load(model_path, parallel=2, memory_budget=2**22, threads=1, model_draft=draft)
        sizes[draft] = engine.info().context.ctx_size
        assert engine.info().context.kv_bytes <= 2**22
    assert sizes[None] == 2 * sizes[str(model_path)]


def test_progress_runs_over_both_models(model_path: Path) -> None:
    fractions: list[float] = []
    with Engine.load(model_path, **SMALL, model_draft=str(model_path), progress=fractions.append):
        pass
    assert fractions[-1] == pytest.approx(1.0)
    assert 0.5 in [round(fraction, 6) for fraction in fractions]
    assert all(before <= after for before, after in pairwise(fractions))
