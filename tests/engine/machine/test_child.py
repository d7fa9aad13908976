"""Child processes: they import the same package as their parent, and their end has a name."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cllm
from cllm.engine.machine.child import child_environment, signal_name


def test_a_child_imports_the_same_package_wherever_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = subprocess.run(
        [sys.executable, "-c", "import cllm, http.client; print(cllm.__file__)"],
        env=child_environment(), cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.stdout.strip() == cllm.__file__, run.stderr


def test_what_the_user_put_on_the_path_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/some/where")
    assert child_environment()["PYTHONPATH"].endswith(":/some/where")


def test_a_signal_without_a_name_has_its_number() -> None:
    assert signal_name(signal.SIGSEGV) == "SIGSEGV"
    assert signal_name(50) == "signal 50"  # a real-time signal
