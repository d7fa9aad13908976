"""LoRA adapters: logits as llama.cpp's alone, one set in a step, and no prefix of another set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, EngineConfig, InvalidRequest, ModelLoadError
from cllm.engine.sharing import AdapterSet
from tests.engine.engine_helpers import (
    PRECISE,
    WAIT,
    Loader,
    Watched,
    finished,
    greedy,
    standing,
)
from tests.engine.lora_files import write_lora
from tests.engine.plain_llama import CLOSE, difference, engine_logprobs, plain_logprobs

PROMPT = [20 + i * 7 % 300 for i in range(60)]
LONG = [400 - i % 300 for i in range(200)]
SETS: list[list[tuple[int, float]]] = [[], [(0, 1.0)], [(1, 0.5)], [(0, -0.5), (1, 1.5)]]

CONFIG: dict[str, Any] = {**PRECISE, "threads": 1, "ctx_size": 512}


@pytest.fixture(scope="module")
def adapters(f32_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return (
        write_lora(f32_path, folder / "first.gguf", 1),
        write_lora(f32_path, folder / "second.gguf", 2),
    )


@pytest.fixture(scope="module", params=[False, True], ids=["split", "unified"])
def tuned(
    request: pytest.FixtureRequest, f32_path: Path, adapters: tuple[Path, Path]
) -> Iterator[Engine]:
    """An engine with both adapters, which apply with 1 and 0.5 by default."""
    first, second = adapters
    files = (str(first), f"{second}:0.5")
    unified = request.param
    fields: dict[str, Any] = {"lora": files, "kv_unified": unified, "context_shift": True, **CONFIG}
    with Engine.load(f32_path, parallel=4, **fields) as engine:
        yield engine


def text(engine: Engine, prompt: list[int], lora: Any, tokens: int = 12) -> str:
    return finished(engine.submit(prompt, greedy(tokens), lora=lora)).text


@pytest.mark.parametrize("chosen", [*SETS, None])
def test_logits_are_those_of_llama_cpp_with_the_same_adapters(
    tuned: Engine, f32_path: Path, adapters: tuple[Path, Path], chosen: Any
) -> None:
    found = engine_logprobs(tuned, PROMPT, lora=chosen)
    applied = [(0, 1.0), (1, 0.5)] if chosen is None else chosen
    alone = [(adapters[id_], scale) for id_, scale in applied]
    assert difference(found, plain_logprobs(f32_path, PROMPT, adapters=alone)) < CLOSE
    if applied:
        assert difference(found, plain_logprobs(f32_path, PROMPT)) > 0.1


def test_requests_of_different_sets_at_once_are_as_alone(tuned: Engine, load: Loader) -> None:
    alone = [text(tuned, PROMPT, chosen, 24) for chosen in SETS]
    assert len(set(alone)) == len(SETS)
    with standing(tuned):
        together = [tuned.submit(PROMPT, greedy(24), lora=chosen) for chosen in SETS * 2]
    assert [finished(each).text for each in together] == alone * 2


def test_a_step_has_one_set(tuned: Engine) -> None:
    context, steps = tuned._scheduler._context, list[tuple[AdapterSet, set[AdapterSet]]]()
    real = context.decode

    def decode(batch: Any, count: int) -> int:
        of_batch = {tuned._scheduler.slots[seq].scope.adapters for seq in batch.seq[:count]}
        assert len(of_batch) == 1
        steps.append((context._adapters, of_batch))
        return real(batch, count)

    context.decode = decode  # type: ignore[method-assign]
    try:
        with standing(tuned):
            together = [tuned.submit(PROMPT, greedy(8), lora=chosen) for chosen in SETS]
        for each in together:
            finished(each)
    finally:
        context.decode = real  # type: ignore[method-assign]
    assert all({applied} == of_batch for applied, of_batch in steps)
    assert {applied for applied, _ in steps} >= {tuned.adapters.set_of(each) for each in SETS}


def test_prefixes_are_not_shared_between_sets(tuned: Engine) -> None:
    def cached(lora: Any) -> int:
        return finished(tuned.submit(LONG, greedy(1), lora=lora)).usage.cached_tokens

    for chosen in SETS:
        assert cached(chosen) == 0
    assert cached([(0, 0.75)]) == 0  # another scale is another set; it takes a slot
    for chosen in SETS:
        assert cached(chosen or [(1, 0.0)]) == len(LONG) - 1  # a scale of 0 is none


def test_a_prompt_that_is_read_with_another_set_is_not_waited_for(
    load: Loader, f32_path: Path, adapters: tuple[Path, Path]
) -> None:
    engine = load(f32_path, parallel=2, lora=(str(adapters[0]),), batch_size=64, **CONFIG)
    prompt = [20 + i % 300 for i in range(400)]
    with standing(engine):
        first = engine.submit(prompt, greedy(1), lora=[])
    second = finished(engine.submit(prompt, greedy(1), lora=[(0, 1.0)]))
    finished(first)
    assert second.usage.cached_tokens == 0


def test_a_stream_goes_on_while_a_prompt_of_another_set_is_read(tuned: Engine) -> None:
    stream = Watched(tuned, PROMPT, greedy(None), lora=[])
    stream.wait_for_tokens(1)
    prompts = [[20 + (i * 3 + j) % 300 for i in range(300)] for j in range(2)]
    others = [tuned.submit(prompt, greedy(4), lora=[(0, 1.0)]) for prompt in prompts]
    for other in others:
        finished(other)
    stream.wait_for_tokens(stream.generation.usage.completion_tokens + 2)
    stream.generation.cancel()


def test_the_default_set_can_be_changed(tuned: Engine) -> None:
    before = tuned.adapters.defaults
    try:
        tuned.adapters.defaults = tuned.adapters.set_of([(1, 0.5)])
        assert text(tuned, PROMPT, None) == text(tuned, PROMPT, [(1, 0.5)])
        assert tuned.adapters.scales() == [0.0, 0.5]
    finally:
        tuned.adapters.defaults = before


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ([(2, 1.0)], "lora[0].id"),
        ([(0, 1.0), (-1, 1.0)], "lora[1].id"),
        ([(0, float("nan"))], "lora[0].scale"),
        ([(0, float("inf"))], "lora[0].scale"),
        ([(0, 1e39)], "lora[0].scale"),
    ],
)
def test_an_unknown_id_and_a_scale_that_is_not_finite_are_refused(
    tuned: Engine, given: list[tuple[int, float]], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tuned.submit(PROMPT, greedy(1), lora=given)
    assert caught.value.field == field


def test_without_adapters_the_remedy_is_named(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="start with --lora"):
        engine.submit(PROMPT, greedy(1), lora=[(0, 1.0)])
    assert finished(engine.submit(PROMPT, greedy(1), lora=[])).usage.completion_tokens == 1


def test_adapters_can_be_loaded_without_effect(
    load: Loader, f32_path: Path, adapters: tuple[Path, Path]
) -> None:
    files = (str(adapters[0]),)
    engine = load(f32_path, parallel=1, lora=files, lora_init_without_apply=True, **CONFIG)
    assert engine.adapters.scales() == [0.0]
    assert text(engine, PROMPT, None) == text(engine, PROMPT, [])


def test_drafts_change_no_text_of_any_set(
    load: Loader, f32_path: Path, model_path: Path, adapters: tuple[Path, Path]
) -> None:
    options: dict[str, Any] = {"parallel": 2, "lora": (str(adapters[0]),), **CONFIG}
    plain = load(f32_path, draft_max=0, **options)
    drafting = load(f32_path, model_draft=str(model_path), **options)
    repeated = PROMPT[:20] * 3
    wanted = [text(plain, repeated, chosen, 40) for chosen in ([], [(0, 1.0)])]
    with standing(drafting):
        together = [drafting.submit(repeated, greedy(40), lora=c) for c in ([], [(0, 1.0)])]
    assert [finished(each).text for each in together] == wanted


def test_a_file_of_a_slot_belongs_to_its_set(
    load: Loader, f32_path: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"parallel": 1, "slot_save_path": str(tmp_path), "cache_ram": 0}
    first, second = map(str, adapters)
    saving = load(f32_path, lora=(first,), **shared, **CONFIG)
    finished(saving.submit(LONG, greedy(1), lora=[(0, 0.5)]))
    saving.sessions.save(0, "talk").result(WAIT)
    # In another process the adapter may have another id.
    other = load(f32_path, lora=(second, first), **shared, **CONFIG)
    for chosen, cached in (([(0, 0.5)], 0), ([], 0), ([(1, 0.5)], len(LONG) - 1)):
        other.sessions.restore(0, "talk").result(WAIT)
        done = finished(other.submit(LONG, greedy(1), lora=chosen))
        assert done.usage.cached_tokens == cached, chosen
    lacking = load(f32_path, lora=(second,), **shared, **CONFIG)
    with pytest.raises(InvalidRequest, match="LoRA adapters that are loaded"):
        lacking.sessions.restore(0, "talk").result(WAIT)


@pytest.mark.usefixtures("steady_disk")
def test_what_adapters_computed_is_not_kept_on_disk(
    load: Loader, f32_path: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"parallel": 2, "cache_disk": str(tmp_path / "cache"), **CONFIG}
    first, second = map(str, adapters)
    writing = load(f32_path, lora=(first,), **shared)
    finished(writing.submit(LONG, greedy(1), lora=[(0, 1.0)]))
    finished(writing.submit(LONG, greedy(1), lora=[]))
    writing.close()
    assert writing.stats().disk_written_prefixes == 1
    # The adapter of the same number is another one now.
    reading = load(f32_path, lora=(second,), **shared)
    for chosen, cached in (([(0, 1.0)], 0), ([], len(LONG) - 1)):
        done = finished(reading.submit(LONG, greedy(1), lora=chosen))
        assert done.usage.cached_tokens == cached, chosen


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"arch": "qwen2"}, "for models of architecture qwen2, and f32.gguf has llama"),
        ({"kind": "control_vector"}, "its type is control_vector"),
        ({"general": "model"}, "is not a LoRA adapter"),
        ({"wider": 32}, "incorrect shape"),
        ({"left_out": "attn_v.weight.lora_b"}, "missing one component"),
        ({"left_out": "lora_a", "wider": 0}, "missing one component"),
        ({"alpha": float("nan")}, "no valid alpha"),
        ({"invocation": (5, 6)}, "aLoRA"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(
    f32_path: Path, tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    path = write_lora(f32_path, tmp_path / "bad.gguf", 1, **fields)
    with pytest.raises(ModelLoadError, match=r"--lora: bad\.gguf .*;") as caught:
        Engine.load(f32_path, parallel=1, ctx_size=64, lora=(str(path),))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_or_missing_file_is_refused(f32_path: Path, tmp_path: Path) -> None:
    path = write_lora(f32_path, tmp_path / "whole.gguf", 1)
    (tmp_path / "short.gguf").write_bytes(path.read_bytes()[:-100])
    for name, says in (("short.gguf", "cut short"), ("absent.gguf", "there is no file")):
        with pytest.raises(ModelLoadError, match=f"--lora: .*{says}"):
            Engine.load(f32_path, parallel=1, ctx_size=64, lora=(f"{tmp_path / name}:0.5",))


@pytest.mark.parametrize("text", ["a.gguf:nan", "a.gguf:inf", "a.gguf:-1e39"])
def test_a_scale_that_is_not_finite_is_refused_by_the_configuration(text: str) -> None:
    with pytest.raises(ValueError, match=r"lora=.*finite"):
        EngineConfig(lora=(text,))
