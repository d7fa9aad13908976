"""llama-server's command lines and variables start cLLM with the same meaning, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from cllm.option_table import SettingsError, load_settings
from cllm.wiring import api_settings, engine_config


def settings_of(line: str, **environ: str) -> Any:
    return load_settings(line.split(), environ)


def complaint(line: str, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings_of(line, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_usual_command_line_means_the_same() -> None:
    line = (
        "-m model.gguf -c 8192 -np 4 -ngl 99 -t 6 -tb -1 -b 1024 -ub 256 -fa on -ctk q8_0 "
        "-ctv q8_0 --alias mine --jinja --host 0.0.0.0 --port 9000 --metrics --no-ui -cb"
    )
    settings = settings_of(line)
    assert (settings.model, settings.alias) == ("model.gguf", ("mine",))
    assert (settings.threads, settings.threads_batch) == (6, None)
    assert settings.page is False
    assert (settings.host, settings.port) == ("0.0.0.0", 9000)
    config = engine_config(settings)
    assert (config.ctx_size, config.parallel) == (2048, 4)  # 8192 in total
    assert (config.n_gpu_layers, config.batch_size, config.ubatch_size) == (99, 1024, 256)
    assert (config.flash_attn, config.cache_type_k, config.cache_type_v) == ("on", "q8_0", "q8_0")


def test_a_unified_cache_is_for_each_sequence_as_large_as_for_all() -> None:
    config = engine_config(settings_of("-c 4096 -np 4 -kvu"))
    assert (config.ctx_size, config.kv_cells) == (4096, 4096)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("-c 0", "ctx_total", None),
        ("-np -1", "parallel", 8),
        ("-ngl all", "n_gpu_layers", -1),
        ("-ngl auto", "n_gpu_layers", None),
        ("--n-gpu-layers auto", "n_gpu_layers", None),
        ("-sm row", "split_mode", "row"),
        ("-ts 3,1", "tensor_split", (3.0, 1.0)),
        ("--tensor-split 3/1", "tensor_split", (3.0, 1.0)),
        ("-mg 2", "main_gpu", 2),
        ("-ot ffn_.*=CPU,attn=CPU", "override_tensor", ("ffn_.*=CPU", "attn=CPU")),
        ("--lora a.gguf,b.gguf", "lora", ("a.gguf", "b.gguf")),
        (
            "--lora a.gguf --lora-scaled b.gguf:0.5,c.gguf:2",
            "lora",
            ("a.gguf", "b.gguf:0.5", "c.gguf:2"),
        ),
        ("--lora-init-without-apply", "lora_init_without_apply", True),
        ("-cmoe", "cpu_moe", True),
        ("-ncmoe 4", "n_cpu_moe", 4),
        ("-nkvo", "kv_offload", False),
        ("-nkvo -kvo", "kv_offload", True),
        ("--swa-full", "swa_full", True),
        ("--numa distribute", "numa", "distribute"),
        ("-lm dio", "direct_io", True),
        ("--rope-scaling yarn", "rope_scaling", "yarn"),
        ("--rope-scale 4", "rope_scale", 4.0),
        ("--rope-freq-base 0", "rope_freq_base", None),
        ("--rope-freq-scale 0.25", "rope_freq_scale", 0.25),
        ("--yarn-ext-factor -1.0", "yarn_ext_factor", None),
        ("--yarn-ext-factor 0", "yarn_ext_factor", 0.0),
        ("--yarn-orig-ctx 32768", "yarn_orig_ctx", 32768),
        (
            "--override-kv a.b=int:1,c.d=bool:true --override-kv e.f=str:x",
            "override_kv",
            ("a.b=int:1", "c.d=bool:true", "e.f=str:x"),
        ),
        ("--n-gpu-layers 3", "n_gpu_layers", 3),
        ("--n_gpu_layers=3", "n_gpu_layers", 3),
        ("-fa 1", "flash_attn", "on"),
        ("--flash-attn disabled", "flash_attn", "off"),
        ("-cram 512", "cache_ram", 512 << 20),
        ("--cache-ram 512M", "cache_ram", 512 << 20),
        ("-cram 0", "cache_ram", 0),
        ("--reranking", "pooling", "rank"),
        ("--draft 64", "draft_max", 32),
        ("--spec-type none", "draft_max", 0),
        ("--spec-type ngram-simple", "draft_max", 32),
        ("-lm mmap+mlock", "mlock", True),
        ("-nr", "extra_bufts", "off"),
        ("--no-slots", "slots", False),
        ("--ssl-cert-file a.pem --ssl-key-file b.pem", "tls_cert", ("a.pem",)),
        ("--ssl-cert-file a.pem --ssl-key-file b.pem", "tls_key", ("b.pem",)),
        ("-v", "log_level", "debug"),
        ("--sse-ping-interval -1", "sse_ping", 0.0),
        ("-rea off", "reasoning", "off"),
        ("--reasoning-budget 0", "reasoning_budget", 0),
        ('--chat-template-kwargs {"a":1}', "chat_template_kwargs", {"a": 1}),
    ],
)
def test_a_flag_has_the_meaning_that_it_has_there(line: str, name: str, value: Any) -> None:
    assert getattr(settings_of(line), name) == value


def test_sampling_flags_are_defaults_of_requests() -> None:
    line = (
        "--temp 0.6 --top-k 20 --top-p 0.9 --repeat-penalty 1.1 -n 32 -s 7 --typical 0.5 "
        "--samplers top_k;typ_p;temperature --repeat-last-n 9"
    )
    assert api_settings(settings_of(line)).sampling == {
        "temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1,
        "max_tokens": 32, "seed": 7, "typical_p": 0.5, "penalty_last_n": 9,
        "samplers": ("top_k", "typical_p", "temperature"),
    }  # fmt: skip


def test_variables_are_below_our_own_and_above_the_file() -> None:
    environ = {"LLAMA_ARG_CTX_SIZE": "4096", "LLAMA_ARG_N_PARALLEL": "2", "LLAMA_ARG_TOP_K": "5"}
    settings = settings_of("", **environ, LLAMA_ARG_ENDPOINT_SLOTS="0", LLAMA_API_KEY="secret")
    assert engine_config(settings).ctx_size == 2048
    assert (settings.slots, settings.api_key) == (False, ("secret",))
    assert api_settings(settings).sampling == {"top_k": 5}
    placed = settings_of(
        "", LLAMA_ARG_KV_OFFLOAD="off", LLAMA_ARG_CPU_MOE="1", LLAMA_ARG_SWA_FULL="0",
        LLAMA_ARG_YARN_BETA_FAST="16", LLAMA_ARG_OVERRIDE_TENSOR="ffn=CPU",
        LLAMA_ARG_NUMA="isolate",
    )  # fmt: skip
    assert (placed.kv_offload, placed.cpu_moe, placed.swa_full) == (False, True, True)
    assert (placed.yarn_beta_fast, placed.override_tensor) == (16.0, ("ffn=CPU",))
    assert placed.numa == "isolate"
    assert settings_of("", **environ, CLLM_PARALLEL="3").parallel == 3
    assert settings_of("-np 5", **environ, CLLM_PARALLEL="3").parallel == 5


@pytest.mark.parametrize(
    ("line", "environ", "words"),
    [
        ("--cache-ram 8192", {}, ("--cache-ram", "8192M")),
        ("-np 4 --ctx-size 8192", {}, ("--ctx-size", "-np", "write -c 8192")),
        ("--lora-scaled a.gguf", {}, ("--lora-scaled", "FILE:SCALE")),
        ("-hf user/repo", {}, ("-hf", "--model")),
        ("--device CUDA0", {}, ("--device", "--main-gpu")),
        ("--control-vector a.gguf", {}, ("--control-vector", "not supported")),
        ("-ngl many", {}, ("--n-gpu-layers", "many", "all or auto")),
        ("--rope-scaling longrope", {}, ("--rope-scaling", "longrope", "yarn")),
        ("--rope-scale -4", {}, ("--rope-scale", "-4", "above 0")),
        ("--rope-freq-base inf", {}, ("--rope-freq-base", "inf", "above 0")),
        ("--yarn-beta-slow nan", {}, ("--yarn-beta-slow", "nan", "at least 0")),
        ("-ts 3,x", {}, ("--tensor-split", "3,x", "such as 3,1")),
        ("-ncmoe -1", {}, ("--n-cpu-moe", "-1", "from 0")),
        ("--numa mirror", {}, ("--numa", "mirror", "distribute")),
        ("--mmproj a.gguf", {}, ("--mmproj", "images")),
        ("--timeout 5", {}, ("--timeout", "--request-timeout")),
        ("--sleep-idle-seconds -5", {}, ("--sleep-idle-seconds", "from 0")),
        ("-lm nonsense", {}, ("-lm", "nonsense", "mmap+mlock")),
        ("--temp", {}, ("--temp", "argument")),
        ("--nonsense 5", {}, ("--nonsense",)),
        ("", {"LLAMA_ARG_HF_REPO": "user/repo"}, ("LLAMA_ARG_HF_REPO", "--model")),
        ("", {"LLAMA_ARG_TOP_KK": "5"}, ("LLAMA_ARG_TOP_KK", "LLAMA_ARG_TOP_K")),
        ("", {"LLAMA_ARG_KV_UNIFIED": "maybe"}, ("LLAMA_ARG_KV_UNIFIED", "on or off")),
    ],
)
def test_what_would_be_misread_or_lost_is_refused(
    line: str, environ: dict[str, str], words: tuple[str, ...]
) -> None:
    told = complaint(line, **environ)
    assert [word for word in words if word not in told] == [], told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--lora a.gguf:nan", ("--lora", "a.gguf:nan", "finite")),
        ("--override-kv a.b", ("--override-kv", "a.b", "KEY=TYPE:VALUE")),
        ("--override-kv a.b=int:x", ("--override-kv", "a.b=int:x", "whole number")),
        ("-ot ffn", ("--override-tensor", "ffn", "PATTERN=BUFFER")),
        ("-ts 0,0", ("--tensor-split", "above 0")),
        ("--rope-scale 4 --rope-freq-scale 0.25", ("--rope-scale", "--rope-freq-scale")),
        ("-lm dio --mlock", ("--direct-io", "--mlock")),
    ],
)
def test_what_only_the_engine_can_judge_is_refused_by_its_flag(
    line: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        engine_config(settings_of(line))
    told = str(caught.value)
    assert [word for word in words if word not in told] == [], told


@pytest.mark.parametrize("given", ["temperature=hot", "nonsense=1", "id_slot=1", "top_k"])
def test_a_wrong_default_of_requests_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="sampling"):
        api_settings(settings_of(f"--sampling {given}"))


def test_our_own_context_size_stays_per_sequence() -> None:
    assert engine_config(settings_of("-m a.gguf --ctx-size 2048 --parallel 4")).ctx_size == 2048
    with pytest.raises(SettingsError, match="give one of them"):
        engine_config(settings_of("--ctx-total 4096 --ctx-size 2048"))


def test_built_in_templates_have_their_names_and_an_unknown_one_lists_them() -> None:
    assert api_settings(settings_of("--chat-template chatml")).chat_template is not None
    with pytest.raises(SettingsError, match="chatml"):
        api_settings(settings_of("--chat-template chatmal"))


@pytest.mark.parametrize("number", [5000 * "9", "x"], ids=["huge", "word"])
@pytest.mark.parametrize("name", ["--draft", "--sse-ping-interval", "--cache-ram", "-c", "-np"])
def test_what_is_no_usable_number_is_named_with_what_was_expected(name: str, number: str) -> None:
    said = complaint(f"{name} {number}")
    assert f'got "{number[:80]}' in said and "expected a " in said and len(said) < 300
