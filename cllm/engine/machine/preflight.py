"""Finds out, in a child process, whether llama.cpp's fast CPU kernels crash on this machine.

llama.cpp keeps quantized weights in "extra buffer types" (repacked, AMX, KleidiAI) where the CPU
has kernels for them. GCC before 13 miscompiles the AMX ones: the first matrix product ends in
SIGSEGV (ggml-org/llama.cpp#20824), which no program can catch. So a child runs a tiny model with
a matrix of every quantized type first, and then compares what the built-in model computes with and
without these buffers. Where it dies or the numbers differ, the engine does without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cllm.engine.machine.user_cache import replacing, user_cache
from cllm.models import demo_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TIME_LIMIT = 20.0  # seconds; it takes less than one on an idle machine

REMEDY = (
    "For full speed rebuild llama-cpp-python with clang: CC=clang-19 CXX=clang++-19 "
    "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python; "
    "or pass --extra-bufts off to skip this check."
)

# Part of the verdict's key: count up when the child's work changes.
_REVISION = 2
_IN_FORCE = re.compile(r"\b(REPACK|AMX_INT8|KLEIDIAI) = 1")
# Deaths that say something about the code that ran, and so are worth remembering. A kill by
# the system (out of memory), a time limit or a broken installation may pass.
_CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the extra buffer types may be used, whether that was known already, and why."""

    ok: bool
    cached: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Library:
    """The llama.cpp that this process uses: where it lies, its version, its CPU features."""

    directory: Path
    version: str
    features: str  # llama_print_system_info()

    @classmethod
    def loaded(cls) -> Library:
        """The library that llama_cpp loads here, with LLAMA_CPP_LIB_PATH taken into account."""
        import llama_cpp

        chosen = os.environ.get("LLAMA_CPP_LIB_PATH")
        directory = Path(chosen) if chosen else Path(llama_cpp.__file__).parent / "lib"
        features = llama_cpp.llama_print_system_info().decode(errors="replace")
        return cls(directory.resolve(), llama_cpp.__version__, features)

    def key(self) -> str:
        """Names this build on this CPU: 32 hex digits that change when either does."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (str(_REVISION), str(self.directory), self.version, self.features, _cpu()):
            digest.update(part.encode() + b"\0")
        # With GGML_BACKEND_DL there is one such file for each kind of CPU.
        for file in sorted(self.directory.glob("*ggml-cpu*")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()


def check(
    library: Library | None = None, *, force: bool = False, time_limit: float = TIME_LIMIT
) -> Verdict:
    """Whether quantized models may use the extra buffer types of `library` (default: the loaded).

    Runs the child at most once for one library on one CPU, unless `force`. Never raises for what
    the child does, and prints nothing. Anything but a clean end within `time_limit` seconds is a
    "no": without these buffers everything works, only slower.
    """
    library = library or Library.loaded()
    if not _IN_FORCE.search(library.features):
        return Verdict(True, False, "this build of llama.cpp has no extra CPU buffer types")
    path = user_cache() / f"preflight-{library.key()}.json"
    if not force and (known := _remembered(path)):
        return known
    verdict, conclusive = _run_child(time_limit)
    if conclusive:
        _remember(path, verdict)
    return verdict


def _remembered(path: Path) -> Verdict | None:
    try:
        saved = json.loads(path.read_text())
        ok, detail = saved["ok"], saved["detail"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(ok, bool) or not isinstance(detail, str):
        return None
    return Verdict(ok, True, detail)


def _remember(path: Path, verdict: Verdict) -> None:
    try:
        with replacing(path) as part:
            part.write_text(json.dumps({"ok": verdict.ok, "detail": verdict.detail}))
    except OSError:
        pass  # a full disk only means that the next start checks again


def _run_child(time_limit: float) -> tuple[Verdict, bool]:
    """The verdict, and whether it would be the same next time."""
    try:
        with tempfile.TemporaryDirectory(prefix="cllm-preflight-") as directory:
            child = subprocess.run(
                [sys.executable, "-m", "cllm.engine.machine.preflight", "--child", directory],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=time_limit,
                env=child_environment(),
                start_new_session=True,
                check=False,
            )
    except subprocess.TimeoutExpired:
        detail = f"llama.cpp's extra CPU kernels did not finish within {time_limit:g} s"
        return Verdict(False, False, detail), False
    except OSError as error:
        detail = f"llama.cpp's extra CPU kernels could not be tested: {error}"
        return Verdict(False, False, detail), False
    status = child.returncode
    if status == 0:
        return Verdict(True, False, "llama.cpp's extra CPU kernels work here"), True
    if status == _WRONG:
        detail = f"llama.cpp's extra CPU kernels compute wrong numbers on this CPU. {REMEDY}"
        return Verdict(False, False, detail), True
    if status < 0:
        name = signal_name(-status)
        detail = f"llama.cpp's extra CPU kernels crash on this CPU ({name}). {REMEDY}"
        return Verdict(False, False, detail), -status in _CRASHES
    lines = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
    detail = f"llama.cpp's extra CPU kernels could not be tested: {lines[-1]}"
    return Verdict(False, False, detail), False


def signal_name(number: int) -> str:
    """SIGSEGV for 11, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def child_environment() -> dict[str, str]:
    """The environment in which a child process finds this very cllm, however the parent did."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "GGML_NO_BACKTRACE": "1",  # a failing assertion would start gdb
        # OpenMP threads that spin while they wait make this ten times slower on a busy machine.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }


def _cpu() -> str:
    """The CPU's model and abilities; a virtual machine may move to another between two starts."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    first = text.split("\n\n")[0]
    wanted = r"^(?:vendor_id|cpu family|model|model name|stepping|flags|Features|CPU \w+)\s*:.*$"
    return "\n".join(re.findall(wanted, first, re.MULTILINE))


# The child.


def _types() -> Iterator[int]:
    """Every type with kernels in an extra buffer type, over and over.

    Sources: ggml_repack_get_optimal_repack_type (repack.cpp) and qtype_has_amx_kernels
    (amx/common.h) in ggml/src/ggml-cpu.
    """
    from gguf import GGMLQuantizationType as Type

    amx = (Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS)
    only_repacked = (Type.Q2_K, Type.IQ4_NL, Type.MXFP4)
    while True:
        yield from amx + only_repacked


_WIDTH = 256  # one block of a K-quant, and a multiple of every kernel's tile
_LAYERS = 2  # of seven matrices: room for every type
_TOKENS = 32
_WRONG = 3  # the child's exit status when the kernels disagree


def _write_model(path: Path) -> None:
    """A model whose weights are all zero: kernels run the same, and nothing need be quantized."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(4)
    writer.add_rope_dimension_count(_WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_TOKENS)
    writer.add_tokenizer_model("no_vocab")

    types = _types()

    def matrix(name: str, rows: int = _WIDTH) -> None:
        kind = gguf.GGMLQuantizationType(next(types))
        block, size = gguf.GGML_QUANT_SIZES[kind]
        zeros = np.zeros((rows, _WIDTH // block * size), dtype=np.uint8)
        writer.add_tensor(name, zeros, raw_dtype=kind)

    ones = np.ones(_WIDTH, dtype=np.float32)
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", ones)
        writer.add_tensor(block + "ffn_norm.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}{name}.weight")
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            matrix(f"{block}{name}.weight")
    writer.add_tensor("token_embd.weight", np.ones((_TOKENS, _WIDTH), dtype=np.float32))
    writer.add_tensor("output_norm.weight", ones)
    matrix("output.weight", _TOKENS)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _logits(path: Path, extra_bufts: bool) -> npt.NDArray[np.float32]:
    """Decodes a prompt, eight sequences together and one token; (57, vocabulary) logits."""
    import llama_cpp as llama
    import numpy as np

    model_params = llama.llama_model_default_params()
    model_params.use_extra_bufts = extra_bufts
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        raise RuntimeError(f"llama.cpp refused {path.name}")
    context_params = llama.llama_context_default_params()
    context_params.n_ctx = 512
    context_params.n_seq_max = 8
    context_params.n_threads = context_params.n_threads_batch = min(4, os.cpu_count() or 1)
    context = llama.llama_init_from_model(model, context_params)
    if not context:
        raise RuntimeError(f"llama.cpp refused a context for {path.name}")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(48, 0, 1)
    prompt = [(0, position) for position in range(48)]
    together = [(sequence, 48 if sequence == 0 else 0) for sequence in range(8)]
    alone = [(0, 49)]
    rows = []
    for step in (prompt, together, alone):
        batch.n_tokens = len(step)
        for row, (sequence, position) in enumerate(step):
            batch.token[row] = position % _TOKENS
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = True
        status = llama.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} in the preflight")
        # Waits for a device that computes asynchronously.
        pointer = llama.llama_get_logits(context)
        rows.append(np.ctypeslib.as_array(pointer, (len(step), vocabulary)).copy())
    return np.concatenate(rows)


def _agree(fast: npt.NDArray[np.float32], plain: npt.NDArray[np.float32]) -> bool:
    """Whether two ways to compute the same logits differ by rounding alone (8-bit activations)."""
    import numpy as np

    difference, size = np.linalg.norm(fast - plain), np.linalg.norm(plain)
    return bool(difference < 0.1 * size)  # False for NaN


def _child(directory: str) -> int:
    import ctypes
    import resource

    import llama_cpp as llama

    @llama.llama_log_callback  # type: ignore[untyped-decorator]
    def be_silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        pass

    llama.llama_log_set(be_silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is no news worth a core file
    path = Path(directory) / "preflight.gguf"
    _write_model(path)
    _logits(path, extra_bufts=True)
    fast, plain = (_logits(demo_path(), extra) for extra in (True, False))
    return 0 if _agree(fast, plain) else _WRONG


if __name__ == "__main__" and sys.argv[1:2] == ["--child"]:
    sys.exit(_child(sys.argv[2]))
