"""The programs that tests need: the scripts install them where they can, in bounded steps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.test_scripts_env import program, shell


def failing_python(folder: Path) -> Path:
    """A virtual environment whose Python records its arguments, and whose browser never starts."""
    folder.joinpath("bin").mkdir(parents=True)
    program(
        folder / "bin",
        "python",
        f'echo "$@" >>"{folder}/calls"; echo "no browser; get one"; exit 1',
    )
    return folder


def test_a_browser_that_starts_is_not_installed_again(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    program(venv / "bin", "python")
    done = shell(f"use_venv '{venv}'; ensure_browser")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_a_browser_its_tests_are_skipped_with_the_remedy(tmp_path: Path) -> None:
    venv = failing_python(tmp_path / "venv")
    done = shell(f"debian_install() {{ false; }}; use_venv '{venv}'; ensure_browser; echo on")
    assert done.stdout == "on\n"
    assert "the tests of the page are skipped: no browser; get one" in done.stderr
    assert "-m playwright install chromium" in (venv / "calls").read_text()


def test_without_node_its_tests_are_skipped_with_the_remedy() -> None:
    nothing = "command() { false; }; debian_install() { false; }"
    done = shell(f"{nothing}; ensure_node; echo on")
    assert done.stdout == "on\n"
    assert "skipped" in done.stderr and "apt-get install nodejs npm" in done.stderr


@pytest.mark.parametrize("broken", ["update", "--download-only", "--no-download", ""])
def test_packages_of_debian_are_installed_in_bounded_steps(tmp_path: Path, broken: str) -> None:
    """An update may fail: the lists may be there already."""
    calls = tmp_path / "calls"
    step = 'case "$*" in *"${BROKEN:-none}"*) exit 1;; esac'
    program(tmp_path, "apt-get", f'echo "$@" >>"{calls}"; {step}')
    program(tmp_path, "timeout", f'echo "timeout $3" >>"{calls}"; shift 2; exec "$@"')
    done = shell(
        f"use_venv '{tmp_path}'; grep() {{ true; }}; as_root() {{ \"$@\"; }}; "
        "if debian_install one two; then echo installed; fi",
        path=f"{tmp_path}:{os.environ['PATH']}",
        BROKEN=broken,
    )
    assert done.stdout == ("" if broken.startswith("--") else "installed\n"), done
    lines = calls.read_text().splitlines()
    assert all(line.startswith("timeout") for line in lines[::2])
    assert lines[1].endswith("update") and "one two" in lines[3]
