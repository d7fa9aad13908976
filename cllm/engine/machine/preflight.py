"""Finds out whether llama.cpp's fast CPU kernels crash on this machine, by a child process.

llama.cpp keeps quantized weights in "extra buffer types" (repacked, AMX, KleidiAI) if the CPU has
kernels for them. GCC before 13 miscompiles the AMX ones: the first matrix product ends in SIGSEGV
(ggml-org/llama.cpp#20824), which no program can catch. So a child, preflight_child.py, tries them
first. If it crashes, or computes other numbers than without them, the engine does not use them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cllm.engine.machine.child import child_environment, signal_name
from cllm.engine.machine.user_cache import replacing, user_cache

TIME_LIMIT = 20.0  # seconds; it takes less than one on an idle machine

WRONG_NUMBERS = 3
"""The child's exit status when the kernels compute wrong numbers."""

REMEDY = (
    "For full speed rebuild llama-cpp-python with clang: CC=clang-19 CXX=clang++-19 "
    "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python; "
    "or pass --extra-bufts off to continue without this check."
)

# Part of the key: count up when the work of preflight_child.py changes.
_REVISION = 2
_IN_FORCE = re.compile(r"\b(REPACK|AMX_INT8|KLEIDIAI) = 1")
# Deaths caused by the code that ran, and so worth remembering. A kill by the system (out of
# memory), a time limit or a broken installation may be temporary.
_CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the extra buffer types may be used, whether that was cached, and why."""

    ok: bool
    cached: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Library:
    """A build of llama.cpp: its directory, its version, its CPU features. See llama.library()."""

    directory: Path
    version: str
    features: str  # llama_print_system_info()

    @property
    def has_amx(self) -> bool:
        """Whether it uses AMX on this CPU."""
        return "AMX_INT8 = 1" in self.features

    def key(self) -> str:
        """Identifies this build on this CPU: 32 hex digits that change when either does."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (str(_REVISION), str(self.directory), self.version, self.features, _cpu()):
            digest.update(part.encode() + b"\0")
        # With GGML_BACKEND_DL there is one such file for each type of CPU.
        for file in sorted(self.directory.glob("*ggml-cpu*")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()


def check(library: Library, *, force: bool = False, time_limit: float = TIME_LIMIT) -> Verdict:
    """Whether quantized models may use the extra buffer types of `library`.

    Runs the child at most once per library and CPU, unless `force`. Never raises for what the
    child does, and prints nothing. Unless the child ends with status 0 within `time_limit`
    seconds, the verdict is no: without these buffers everything works, only slower.
    """
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
    """The verdict, and whether another run would give the same."""
    try:
        with tempfile.TemporaryDirectory(prefix="cllm-preflight-") as directory:
            child = subprocess.run(
                [sys.executable, "-m", "cllm.engine.machine.preflight_child", directory],
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
    if status == WRONG_NUMBERS:
        detail = f"llama.cpp's extra CPU kernels compute wrong numbers on this CPU. {REMEDY}"
        return Verdict(False, False, detail), True
    if status < 0:
        name = signal_name(-status)
        detail = f"llama.cpp's extra CPU kernels crash on this CPU ({name}). {REMEDY}"
        return Verdict(False, False, detail), -status in _CRASHES
    lines = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
    detail = f"llama.cpp's extra CPU kernels could not be tested: {lines[-1]}"
    return Verdict(False, False, detail), False


def _cpu() -> str:
    """The CPU's model and features; a virtual machine may move to another CPU between starts."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    first = text.split("\n\n")[0]
    wanted = r"^(?:vendor_id|cpu family|model|model name|stepping|flags|Features|CPU \w+)\s*:.*$"
    return "\n".join(re.findall(wanted, first, re.MULTILINE))
