"""The preflight: kernels that crash are detected, remembered and not used.

The crash is real. A shared library, preloaded into the child, replaces the kernels that llama.cpp
runs on repacked weights, and crashes (or hangs) in them as the miscompiled AMX kernels do.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from cllm.engine import llama
from cllm.engine.machine import preflight, preflight_child
from cllm.engine.machine.preflight import Library, Verdict
from cllm.models import demo_path
from tests.random_model import random_path

LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
COMPILER = shutil.which("gcc") or shutil.which("cc")
NEEDS_COMPILER = pytest.mark.skipif(
    COMPILER is None or shutil.which("nm") is None or sys.platform != "linux",
    reason="a library that crashes must be compiled",
)

Shim = Callable[[str], str]


def check(
    library: Library | None = None, *, force: bool = False, time_limit: float = preflight.TIME_LIMIT
) -> Verdict:
    """The verdict on a library, by default on the one that is loaded."""
    return preflight.check(library or llama.library(), force=force, time_limit=time_limit)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own; verdicts of other tests must not decide anything here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cllm"


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """Compiles a library that does `action` (C) in every kernel for repacked or AMX weights."""

    def compile_shim(action: str) -> str:
        listing = subprocess.run(
            ["nm", "-D", "--defined-only", LIBRARIES / "libggml-cpu.so"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip
        symbols = [line.split()[-1] for line in listing.splitlines()]
        kernels = [
            symbol
            for symbol in symbols
            if "6repack13tensor_traits" in symbol and "15compute_forward" in symbol
        ]
        assert kernels, "llama.cpp's repacked kernels have other names now"
        kernels.append("_Z24ggml_backend_amx_mul_matPK19ggml_compute_paramsP11ggml_tensor")
        lines = ["#include <signal.h>", "#include <unistd.h>"]
        for number, symbol in enumerate(kernels):
            lines.append(f'void kernel{number}(void) __asm__("{symbol}");')
            lines.append(f"void kernel{number}(void) {{ {action} }}")
        directory = tmp_path_factory.mktemp("shim")
        (directory / "shim.c").write_text("\n".join(lines))
        library = directory / "shim.so"
        subprocess.run(
            [str(COMPILER), "-shared", "-fPIC", "-o", library, directory / "shim.c"],
            check=True, timeout=60,
        )  # fmt: skip
        return str(library)

    return compile_shim


@pytest.fixture(scope="session")
def crashing(shim: Shim) -> str:
    return shim("*(volatile int *)0 = 0;")


def test_the_library_of_this_environment_passes(capfd: pytest.CaptureFixture[str]) -> None:
    verdict = check()
    assert (verdict.ok, verdict.cached) == (True, False)
    assert capfd.readouterr() == ("", "")


@NEEDS_COMPILER
def test_a_crash_in_the_kernels_is_found_out_and_said_with_its_remedy(
    crashing: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LD_PRELOAD", crashing)
    verdict = check()
    assert not verdict.ok
    assert "SIGSEGV" in verdict.detail
    assert "CC=clang-19" in verdict.detail
    assert "--extra-bufts off" in verdict.detail
    assert capfd.readouterr() == ("", "")


@NEEDS_COMPILER
def test_a_verdict_is_remembered_and_no_second_child_runs(
    crashing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = check()
    monkeypatch.setenv("LD_PRELOAD", crashing)  # a child that ran now would die
    again = check()
    assert (again.ok, again.cached, again.detail) == (True, True, good.detail)

    assert not check(force=True).ok
    monkeypatch.delenv("LD_PRELOAD")
    remembered = check()
    assert (remembered.ok, remembered.cached) == (False, True)
    assert "SIGSEGV" in remembered.detail


@NEEDS_COMPILER
def test_another_library_or_cpu_is_checked_anew(
    crashing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "lib"
    directory.mkdir()
    binary = directory / "libggml-cpu.so"
    binary.write_bytes(b"one build")
    library = Library(directory, "1.0", "REPACK = 1")
    assert check(library).ok
    assert check(library).cached
    monkeypatch.setenv("LD_PRELOAD", crashing)

    binary.write_bytes(b"another build")
    assert not check(library).cached
    assert not check(Library(directory, "1.1", "REPACK = 1")).cached
    assert not check(Library(directory, "1.0", "REPACK = 1 | AMX_INT8 = 1")).cached
    shutil.copytree(directory, tmp_path / "elsewhere")
    assert not check(Library(tmp_path / "elsewhere", "1.0", "REPACK = 1")).cached
    monkeypatch.setattr(preflight, "_cpu", lambda: "another CPU")
    assert not check(library).cached


def test_a_library_chosen_by_the_environment_is_the_one_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = llama.library()
    assert own.directory == LIBRARIES.resolve()
    shutil.copytree(LIBRARIES, tmp_path / "lib")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "lib"))
    assert llama.library().directory == tmp_path / "lib"
    assert llama.library().key() != own.key()
    assert check().ok


@NEEDS_COMPILER
def test_without_extra_buffer_types_no_child_runs(
    crashing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", crashing)
    verdict = check(Library(LIBRARIES, "1.0", "CPU : AVX2 = 1 | REPACK = 0 | "))
    assert verdict.ok


@NEEDS_COMPILER
def test_kernels_that_never_return_are_given_up_and_tried_again_next_time(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", shim("for (;;) pause();"))
    verdict = check(time_limit=2.0)
    assert not verdict.ok
    assert "2 s" in verdict.detail
    monkeypatch.delenv("LD_PRELOAD")
    assert check().ok


def test_a_child_that_cannot_work_is_no_verdict_on_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = llama.library()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "nowhere"))
    verdict = check(library)
    assert not verdict.ok
    assert "Shared library" in verdict.detail
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH")
    assert check(library).ok


def test_kernels_that_compute_wrong_numbers_are_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\nexit 3\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    verdict = check()
    assert not verdict.ok
    assert "wrong numbers" in verdict.detail
    assert "CC=clang-19" in verdict.detail


def test_the_numbers_of_the_built_in_model_tell_rounding_from_error() -> None:
    plain = preflight_child.logits(demo_path(), extra_bufts=False)
    assert preflight_child.agree(preflight_child.logits(demo_path(), extra_bufts=True), plain)
    assert preflight_child.agree(plain + np.float32(0.01), plain)
    assert not preflight_child.agree(plain[::-1], plain)
    assert not preflight_child.agree(plain * np.float32("nan"), plain)


@NEEDS_COMPILER
def test_a_child_that_the_system_kills_is_no_verdict_on_the_kernels(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", shim("raise(SIGKILL);"))
    assert not check().ok
    monkeypatch.delenv("LD_PRELOAD")
    assert check().ok


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"ok": "yes", "detail": ""}'])
def test_a_verdict_that_cannot_be_read_is_made_again(content: bytes, cache: Path) -> None:
    check()
    (file,) = cache.glob("preflight-*.json")
    file.write_bytes(content)
    assert not check().cached
    assert check().cached


@NEEDS_COMPILER
def test_nothing_is_left_behind(
    crashing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("LD_PRELOAD", crashing)
    monkeypatch.chdir(temporary)  # where a core file would be written
    assert not check().ok
    assert os.listdir(temporary) == []
    assert len(os.listdir(cache)) == 1


@pytest.fixture(scope="session")
def repacked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in Q4_0, which llama.cpp repacks on every CPU that it repacks for."""
    path = tmp_path_factory.mktemp("model") / "q4_0.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.allow_requantize = True
    status = llama_cpp.llama_model_quantize(
        os.fsencode(random_path()), os.fsencode(path), ctypes.byref(parameters)
    )
    assert status == 0
    return path


SERVE = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
from cllm import Engine
with Engine.load(sys.argv[1], parallel=1, extra_bufts=sys.argv[2]) as engine:
    print(engine.info().context.extra_bufts)
    print(repr(engine.generate("Once upon a time", max_tokens=20, temperature=0).text))
"""


def serve(model: Path, extra_bufts: str, shim: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SERVE, model, extra_bufts],
        env={**os.environ, "LD_PRELOAD": shim},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@NEEDS_COMPILER
def test_where_the_kernels_crash_an_engine_left_to_itself_serves_all_the_same(
    crashing: str, repacked_model: Path
) -> None:
    forced = serve(repacked_model, "on", crashing)
    assert forced.returncode == -signal.SIGSEGV

    healthy = serve(repacked_model, "off")
    saved = serve(repacked_model, "auto", crashing)
    assert saved.returncode == 0, saved.stderr
    assert saved.stdout == healthy.stdout
    assert saved.stdout.startswith("False\n")

    warnings = [line for line in saved.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "CC=clang-19" in warnings[0]


def test_where_they_work_an_engine_left_to_itself_uses_them(repacked_model: Path) -> None:
    result = serve(repacked_model, "auto")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("True\n")
    assert "WARNING" not in result.stderr
