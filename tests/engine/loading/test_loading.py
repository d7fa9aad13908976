"""Files that cannot be loaded are refused with one line and a remedy, without a crash."""

from __future__ import annotations

import re
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from cllm.engine import Engine, EngineConfig, ModelLoadError
from cllm.engine.loading.gguf_header import TruncatedError, read_header
from tests.engine.engine_helpers import Loader
from tests.engine.engine_models import write_f32, write_hybrid, write_windowed


def refusal(path: Path, **config: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        Engine.load(path, **config)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message, "a remedy follows the reason"
    return message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "absent.gguf" in refusal(tmp_path / "absent.gguf")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"G", b"PK\x03\x04 a zip archive", b"FUGG" * 100])
def test_what_is_not_a_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    assert "GGUF" in refusal(path)


def test_an_unknown_gguf_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "future.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 77) + bytes(100))
    assert "version 77" in refusal(path)


@pytest.mark.parametrize("share", [0.00001, 0.001, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(model_path: Path, tmp_path: Path, share: float) -> None:
    data = model_path.read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(data[: max(6, int(len(data) * share))])
    assert "download it again" in refusal(path)


def test_one_missing_byte_is_noticed(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    extent = len(model_path.read_bytes())
    while True:  # the file may end in padding, which nobody needs
        extent -= 1
        path.write_bytes(model_path.read_bytes()[:extent])
        try:
            read_header(path)
        except TruncatedError:
            break
    assert len(model_path.read_bytes()) - extent <= 32


def test_a_header_of_noise_is_refused(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(model_path.read_bytes()[:8] + b"\xff" * 4096)
    refusal(path)


def test_a_vocabulary_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "no weights" in refusal(path)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "alien.gguf"
    writer = gguf.GGUFWriter(path, "alien")
    writer.add_tensor("x", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "alien" in refusal(path)


def written_without(source: Path, target: Path, left_out: str) -> Path:
    """A copy of a model that lacks a key or a tensor."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for item in reader.fields.values():
        if item.name.startswith("GGUF.") or item.name in ("general.architecture", left_out):
            continue
        inner = item.types[-1] if item.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(item.name, item.contents(), item.types[0], inner)
    for tensor in reader.tensors:
        if tensor.name != left_out:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    "left_out",
    ["llama.context_length", "llama.block_count", "token_embd.weight", "blk.0.ffn_norm.weight"],
)
def test_what_is_missing_is_named(model_path: Path, tmp_path: Path, left_out: str) -> None:
    path = written_without(model_path, tmp_path / "lacking.gguf", left_out)
    assert left_out in refusal(path)


@pytest.mark.parametrize(
    ("arch", "kind", "says"),
    [("llama", "adapter", "LoRA"), ("clip", "mmproj", "mmproj"), ("clip", None, "mmproj")],
)
def test_what_only_belongs_to_a_model_is_refused_by_its_kind(
    tmp_path: Path, arch: str, kind: str | None, says: str
) -> None:
    import numpy as np

    path = tmp_path / "part.gguf"
    writer = gguf.GGUFWriter(path, arch)
    if kind is not None:
        writer.add_type(kind)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert says in refusal(path)


def test_a_missing_part_of_a_split_model_is_named(model_path: Path, tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "model-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("x", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "model-00002-of-00002.gguf" in refusal(path)


def test_a_cache_beyond_the_memory_is_refused(model_path: Path) -> None:
    message = refusal(model_path, ctx_size=2**22, parallel=256, cache_type_k="f32")
    assert "parallel" in message


def test_the_engine_loads_after_failures(model_path: Path, tmp_path: Path) -> None:
    refusal(tmp_path / "absent.gguf")
    with Engine.load(model_path, parallel=1, ctx_size=64) as engine:
        assert engine.generate("Hello", max_tokens=1, ignore_eos=True).usage.completion_tokens == 1


def test_progress_rises_to_one(model_path: Path) -> None:
    seen: list[float] = []
    Engine.load(model_path, parallel=1, ctx_size=64, progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize("error", [ValueError("mine"), OSError("disk"), KeyboardInterrupt()])
def test_what_progress_raises_reaches_the_caller_as_it_is(
    model_path: Path, capfd: pytest.CaptureFixture[str], error: BaseException
) -> None:
    calls: list[float] = []

    def progress(fraction: float) -> None:
        calls.append(fraction)
        raise error

    with pytest.raises(type(error)) as caught:
        Engine.load(model_path, parallel=1, ctx_size=64, progress=progress)
    assert caught.value is error
    assert len(calls) == 1, "loading stops there"
    assert "ctypes" not in capfd.readouterr().err
    Engine.load(model_path, parallel=1, ctx_size=64).close()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_model_is_read_reaches_the_caller(model_path: Path) -> None:
    pressed = threading.Event()

    def progress(fraction: float) -> None:
        if not pressed.is_set():
            pressed.set()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Engine.load(model_path, parallel=1, ctx_size=64, progress=progress)
    assert pressed.is_set()
    assert not [t for t in threading.enumerate() if t.name == "cllm-load"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parallel", 0),
        ("parallel", 257),
        ("parallel", True),
        ("ctx_size", 1),
        ("batch_size", 0),
        ("ubatch_size", 4096),
        ("threads", 0),
        ("n_gpu_layers", -2),
        ("flash_attn", "maybe"),
        ("cache_type_k", "q9_0"),
        ("extra_bufts", "yes"),
        ("max_queue", -1),
        ("kv_cells", 512),
        ("memory_budget", 0),
    ],
)
def test_a_bad_configuration_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        EngineConfig(**{field: value})  # type: ignore[arg-type]


def test_a_quantized_value_cache_needs_flash_attention() -> None:
    with pytest.raises(ValueError, match="flash_attn"):
        EngineConfig(cache_type_v="q8_0", flash_attn="off")


def test_shared_cells_must_hold_one_sequence(model_path: Path) -> None:
    with pytest.raises(ValueError, match="kv_cells"):
        Engine.load(model_path, kv_unified=True, kv_cells=256, ctx_size=512)


def test_an_unknown_option_is_an_error(model_path: Path) -> None:
    with pytest.raises(TypeError, match="paralel"):
        Engine.load(model_path, paralel=2)


@pytest.mark.parametrize(
    ("write", "config", "words"),
    [
        (write_hybrid, {}, "speculative decoding; interruption.*; reuse of a prefix except"),
        (write_hybrid, {"cache_ram": 0}, "speculative decoding; .*; reuse of a prefix in part"),
        (write_windowed, {}, "reuse of a part of a prefix in host memory"),
        (write_f32, {}, None),
    ],
)
def test_what_is_off_for_a_model_is_logged_in_one_line(
    load: Loader,
    model_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    write: Callable[[Path, Path], None],
    config: dict[str, Any],
    words: str | None,
) -> None:
    path = tmp_path / "model.gguf"
    write(model_path, path)
    with caplog.at_level("INFO", "cllm.engine"):
        load(path, parallel=1, ctx_size=256, **config)
    said = [r.message for r in caplog.records if "off for this model" in r.message]
    assert len(said) == (words is not None)
    assert words is None or re.search(words, said[0])
