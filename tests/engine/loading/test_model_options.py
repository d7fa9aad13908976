"""Options of positions, metadata and devices reach llama.cpp, or are refused before it loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import pytest

from cllm.engine import Engine, EngineConfig, InvalidRequest, ModelLoadError, llama
from tests.engine.engine_helpers import PRECISE, WAIT, Loader
from tests.engine.plain_llama import CLOSE, difference, engine_logprobs, plain_logprobs

PROMPT = [20 + i * 7 % 300 for i in range(120)]
ONE: dict[str, Any] = {**PRECISE, "parallel": 1, "ctx_size": 256, "threads": 1}

YARN = C.LLAMA_ROPE_SCALING_TYPE_YARN


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"rope_freq_base": 500.0}, {"rope_freq_base": 500.0}),
        ({"rope_freq_scale": 0.25}, {"rope_freq_scale": 0.25}),
        ({"rope_scaling": "linear", "rope_scale": 4.0}, {"rope_freq_scale": 0.25}),
        (
            {"rope_scaling": "yarn", "rope_scale": 4.0, "yarn_orig_ctx": 64},
            {"rope_scaling_type": YARN, "rope_freq_scale": 0.25, "yarn_orig_ctx": 64},
        ),
        (
            {
                "rope_scaling": "yarn", "rope_scale": 8.0, "yarn_ext_factor": 0.5,
                "yarn_attn_factor": 1.5, "yarn_beta_slow": 2.0, "yarn_beta_fast": 16.0,
            },
            {
                "rope_scaling_type": YARN, "rope_freq_scale": 0.125, "yarn_ext_factor": 0.5,
                "yarn_attn_factor": 1.5, "yarn_beta_slow": 2.0, "yarn_beta_fast": 16.0,
            },
        ),
    ],
)  # fmt: skip
def test_positions_are_encoded_as_llama_cpp_alone_does(
    load: Loader, f32_path: Path, config: dict[str, Any], context: dict[str, Any]
) -> None:
    found = engine_logprobs(load(f32_path, **ONE, **config), PROMPT)
    assert difference(found, plain_logprobs(f32_path, PROMPT, context=context)) < CLOSE
    assert difference(found, plain_logprobs(f32_path, PROMPT)) > 10 * CLOSE


def test_without_options_positions_are_the_models_own(load: Loader, f32_path: Path) -> None:
    found = engine_logprobs(load(f32_path, **ONE), PROMPT)
    assert difference(found, plain_logprobs(f32_path, PROMPT)) < CLOSE


def test_metadata_is_replaced_for_llama_cpp_and_for_the_engine(
    load: Loader, model_path: Path
) -> None:
    plain = load(parallel=1, ctx_size=64)
    changed = load(
        parallel=1,
        ctx_size=64,
        override_kv=(
            "tokenizer.ggml.add_bos_token=bool:false",
            "llama.context_length=int:777",
            "llama.rope.freq_base=float:123.5",
            "general.name=str:Another, name",
        ),
    )
    begin = plain.info().bos_token
    assert plain.tokenize("a")[0] == begin and begin not in changed.tokenize("a")
    info = changed.info()
    assert (info.max_sequence_length, info.rope_theta) == (777, 123.5)
    assert info.name == "Another, name"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("rope_scaling", "longrope", "none, linear, yarn"),
        ("rope_scale", 0.0, "above 0"),
        ("rope_freq_base", float("nan"), "above 0"),
        ("yarn_ext_factor", float("inf"), "at least 0"),
        ("yarn_beta_fast", -1.0, "at least 0"),
        ("yarn_orig_ctx", -1, "from 0"),
        ("split_mode", "rows", "none, layer, row, tensor"),
        ("tensor_split", (3.0, -1.0), "at least 0"),
        ("tensor_split", (0.0, 0.0), "above 0"),
        ("main_gpu", -1, "at least 0"),
        ("n_cpu_moe", -1, "from 0"),
        ("numa", "mirror", "distribute"),
        ("override_kv", ("a.b",), "KEY=TYPE:VALUE"),
        ("override_kv", ("a.b=uint:3",), "KEY=TYPE:VALUE"),
        ("override_kv", ("a.b=int:3.5",), "whole number"),
        ("override_kv", (f"a.b=int:{2**63}",), "64 bits"),
        ("override_kv", ("a.b=float:nan",), "finite"),
        ("override_kv", ("a.b=bool:yes",), "true or false"),
        ("override_kv", ("a.b=str:" + "x" * 128,), "127 bytes"),
        ("override_kv", ("k" * 128 + "=int:1",), "127 bytes"),
        ("override_tensor", ("ffn",), "PATTERN=BUFFER"),
        ("override_tensor", ("ffn(=CPU",), "pattern"),
    ],
)
def test_a_bad_value_names_the_option(field: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        EngineConfig(**{field: value})  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_options_that_exclude_each_other_are_named() -> None:
    with pytest.raises(ValueError, match="rope_scale and rope_freq_scale"):
        EngineConfig(rope_scale=4.0, rope_freq_scale=0.25)
    with pytest.raises(ValueError, match="direct_io=True excludes mlock"):
        EngineConfig(direct_io=True, mlock=True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"override_tensor": ("ffn=CUDA7",)}, "'CUDA7'; give one of CPU"),
        ({"tensor_split": (1.0,) * 1000}, "1000 shares"),
    ],
)
def test_what_only_this_build_can_judge_is_refused_before_the_file_is_read(
    tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        Engine.load(tmp_path / "absent.gguf", **config)
    assert says in str(caught.value)


@pytest.mark.skipif(llama.offloads(), reason="they have an effect with a GPU")
def test_options_without_effect_are_said_once(
    load: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cllm.engine"):
        engine = load(
            parallel=1, ctx_size=64, n_gpu_layers=9, split_mode="none", main_gpu=1,
            tensor_split=(3.0, 1.0), kv_offload=False, cpu_moe=True, n_cpu_moe=1,
            override_tensor=(r"ffn_(up|down)=CPU",), direct_io=True,
        )  # fmt: skip
    said = [record.getMessage() for record in caplog.records if "no effect" in record.message]
    assert said == [
        "cpu_moe, kv_offload, main_gpu, n_cpu_moe, n_gpu_layers, split_mode, tensor_split: "
        "no effect, because this llama.cpp has no GPU to use"
    ]
    assert engine.info().context.n_gpu_layers == 0
    assert engine.generate("Hello", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2


@pytest.mark.parametrize("config", [{"direct_io": True}, {"mmap": False}, {"mlock": True}])
def test_how_the_file_is_read_changes_no_answer(
    load: Loader, model_path: Path, config: dict[str, Any]
) -> None:
    params = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    plain = load(parallel=1, ctx_size=64).generate("Hello", **params).text
    assert load(parallel=1, ctx_size=64, **config).generate("Hello", **params).text == plain


def test_a_session_of_other_positions_is_refused(load: Loader, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"parallel": 1, "ctx_size": 256, "slot_save_path": str(tmp_path)}
    plain, scaled = load(**shared), load(**shared, rope_scale=2.0)
    engine_logprobs(plain, PROMPT)
    plain.sessions.save(0, "talk").result(WAIT)
    with pytest.raises(InvalidRequest, match=r"options rope_scale=2\.0; it was with none"):
        scaled.sessions.restore(0, "talk").result(WAIT)
    assert plain.sessions.restore(0, "talk").result(WAIT).n_tokens == len(PROMPT)
