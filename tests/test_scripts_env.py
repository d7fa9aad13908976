"""The installing part of run.sh and test.sh, function by function; nothing is installed here."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.tools.refresh_constraints import merged, normalized

SCRIPTS = Path(__file__).parent.parent / "scripts"
DIGESTS = SCRIPTS.parent / "tests" / "api" / "templates" / "digests.json"
CONSTRAINTS = (SCRIPTS / "constraints.txt").read_text()
NINJA = "".join(
    f"  [{n}/193] /usr/bin/g++ -o x.o -c [1/2].cpp\n  a warning\n" for n in range(1, 194)
)
MAKE = "".join(f"[{n:3d}%] Building CXX object\n" for n in range(0, 101, 5))


def shell(
    code: str, *, feed: str = "", path: str = os.environ["PATH"], **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run bash code after sourcing _env.sh as the two scripts do."""
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, "-c", f"set -euo pipefail; source '{SCRIPTS}/_env.sh'; {code}"],
        env={"PATH": path, "HOME": "/nonexistent", **environ}, input=feed, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def program(folder: Path, name: str, code: str = "exit 0") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "install.log"


# The requirement


def test_llama_cpp_python_is_installed_in_the_version_that_was_tested() -> None:
    done = shell("llama_requirement")
    assert re.fullmatch(r"llama-cpp-python==[\d.]+\n", done.stdout), done


def test_the_tested_versions_are_within_the_ranges_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(SCRIPTS.parent / "setup.cfg")
    extras = setup["options.extras_require"]
    ranges = [
        setup["options"]["install_requires"],
        extras["check"],
        extras["test"],
        extras["compat"],
    ]
    tested = [Requirement(line) for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    for requirement in map(Requirement, "".join(ranges).strip().splitlines()):
        found = [each for each in tested if normalized(each.name) == normalized(requirement.name)]
        assert found, requirement
        for each in found:
            [version] = each.specifier
            assert version.version in requirement.specifier, (each, requirement)


def test_the_tested_versions_are_versions_alone() -> None:
    for line in CONSTRAINTS.splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+( ; python_version .*)?", line), line


def test_versions_that_depend_on_python_get_ranges_without_a_gap() -> None:
    lines = merged(
        {
            (3, 9): {"same": "1", "new": "1"},
            (3, 10): {"same": "1", "new": "2", "late": "7"},
            (3, 11): {"same": "1", "new": "2"},
            (3, 12): {"same": "1", "new": "3"},
        }
    )
    assert lines == [
        "late==7",
        'new==1 ; python_version < "3.10"',
        'new==2 ; python_version >= "3.10" and python_version < "3.12"',
        'new==3 ; python_version >= "3.12"',
        "same==1",
    ]


def test_pip_installs_the_tested_versions_wherever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "python", 'test -r "$PIP_CONSTRAINT" && echo "$PIP_BUILD_CONSTRAINT"')
    done = shell(f"VENV={tmp_path}; cd /; pip install x; pwd")
    assert done.stdout == "scripts/constraints.txt\n/\n"


def test_other_tested_versions_are_another_installation(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("setup.py", "setup.cfg", "scripts/_env.sh", "scripts/constraints.txt"):
        shutil.copy(SCRIPTS.parent / name, tmp_path / name)
    changed = f"echo x==1 >>{tmp_path}/scripts/constraints.txt"
    done = shell(f"ROOT={tmp_path}; stamp_of; stamp_of; {changed}; stamp_of")
    first, same, other = done.stdout.split()
    assert first == same != other


@pytest.mark.parametrize(
    ("installed", "suffices"),
    [
        ("run", {"run"}),
        ("check", {"check"}),
        ("test", {"run", "check", "test"}),
    ],
)
def test_an_environment_for_tests_suffices_for_all_else(
    tmp_path: Path, installed: str, suffices: set[str]
) -> None:
    (tmp_path / ".installed").write_text(f"{installed} 1-2\n")
    for purpose in ("run", "check", "test"):
        done = shell(f"VENV={tmp_path}; up_to_date {purpose} 1-2")
        assert (done.returncode == 0) == (purpose in suffices)
        assert shell(f"VENV={tmp_path}; up_to_date {purpose} 3-4").returncode != 0


def test_the_wheel_that_one_python_compiled_serves_another(tmp_path: Path) -> None:
    folder = tmp_path / "wheels" / "a7"
    folder.mkdir(parents=True)
    wheel = folder / "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    wheel.touch()
    (folder / "llama_cpp_python-0.3.35-py3-none-linux_x86_64.whl").touch()
    (folder / "llama_cpp_python-0.3.37-cp311-cp311-linux_x86_64.whl").touch()
    for version, found in (("0.3.36", f"{wheel}\n"), ("0.3.37", ""), ("0.3.3", "")):
        done = shell(f"compiled_wheel {tmp_path} llama-cpp-python=={version}")
        assert (done.returncode, done.stdout) == (0, found)


# The interpreter


def test_an_interpreter_that_does_not_exist_is_named() -> None:
    done = shell("find_python", PYTHON="/no/python")
    assert done.returncode == 1
    assert done.stderr == "cllm: PYTHON=/no/python: there is no such program\n"


def test_an_interpreter_that_is_too_old_is_refused_with_its_version(tmp_path: Path) -> None:
    old = program(tmp_path, "python", '[ "$1" = --version ] && echo Python 3.9.2 || exit 1')
    done = shell("find_python", PYTHON=str(old))
    assert done.returncode == 1
    assert "is Python 3.9.2; cLLM needs Python 3.10 or newer" in done.stderr


def test_an_old_python3_is_passed_over_for_a_newer_one(tmp_path: Path) -> None:
    program(tmp_path, "python3", "exit 1")
    newer = program(tmp_path, "python3.12")
    done = shell("find_python", path=f"{tmp_path}:/usr/bin:/bin")
    assert done.stdout.strip() == str(newer)


def test_other_pythons_are_found_on_the_path_and_in_version_managers_folders(
    tmp_path: Path,
) -> None:
    """A placeholder that answers with an error is no interpreter; nor is a version below 3.10."""
    says = "case $3 in %s) exit 0 ;; *) exit 1 ;; esac"
    on_path, managed = tmp_path / "bin", tmp_path / "versions" / "3.12.9" / "bin"
    older, uv = tmp_path / "versions" / "3.12.1" / "bin", tmp_path / ".local/share/uv/python/x/bin"
    for folder in (on_path, managed, older, uv):
        folder.mkdir(parents=True)
    program(on_path, "python3.9", says % "3.9")
    program(on_path, "python3.10", says % "3.10")
    default = program(on_path, "python3.11", says % "3.11")
    program(on_path, "python3.12", "echo 'no such version' >&2; exit 127")
    program(managed, "python3.12", says % "3.12")
    program(older, "python3.12", says % "3.12")
    program(uv, "python3.13", says % "3.13")
    done = shell(
        f"other_pythons {default} | grep {tmp_path}", path=f"{on_path}:/usr/bin:/bin",
        HOME=str(tmp_path), PYENV_ROOT=str(tmp_path),
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"3.10 {on_path}/python3.10",
        f"3.12 {managed}/python3.12",
        f"3.13 {uv}/python3.13",
    ]


def test_an_interpreter_is_known_by_its_version() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert shell(f"is_python {version} {sys.executable}").returncode == 0
    assert shell(f"is_python 3.1 {sys.executable}").returncode == 1


# The compiler


def test_clang_compiles_where_the_cpu_has_amx(tmp_path: Path) -> None:
    for name in ("clang-18", "clang++-18", "clang-19", "clang++-19", "clang", "clang++"):
        program(tmp_path, name)
    done = shell('choose_compiler "fpu amx_tile avx2"; echo $CC $CXX', path=f"{tmp_path}:/bin")
    assert done.stdout == "clang-19 clang++-19\n"


def test_the_users_own_choice_of_a_compiler_is_kept(tmp_path: Path) -> None:
    program(tmp_path, "clang-19")
    program(tmp_path, "clang++-19")
    done = shell("choose_compiler amx_tile; echo $CXX", path=f"{tmp_path}:/bin", CXX="g++-13")
    assert done.stdout == "g++-13\n"


def test_nothing_is_chosen_where_the_cpu_has_no_amx() -> None:
    done = shell('choose_compiler "fpu avx2"; echo "${CC:-none}"')
    assert (done.stdout, done.stderr) == ("none\n", "")


def test_a_cpu_with_amx_and_no_clang_gets_a_hint(tmp_path: Path) -> None:
    done = shell('choose_compiler amx_tile; echo "${CC:-none}"', path=str(tmp_path))
    assert done.stdout == "none\n"
    assert "apt-get install clang-19" in done.stderr


def test_a_missing_compiler_is_told_before_anything_is_downloaded(tmp_path: Path) -> None:
    for name in ("sed", "cat"):
        os.symlink(shutil.which(name) or name, tmp_path / name)
    done = shell("compile_llama llama-cpp-python", path=str(tmp_path))
    assert done.returncode == 1
    assert "no C++ compiler is installed" in done.stderr
    assert "apt-get install build-essential" in done.stderr


# The chat templates


SOURCE = "llama_cpp_python-{0}/vendor/llama.cpp/models/templates/a.jinja"


def templates(tmp_path: Path, python: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Fetch them with this program for python, and where they should be then."""
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "python", python)
    done = shell(
        f"VENV={tmp_path}; LOG={tmp_path}/log; ensure_templates; ensure_templates",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    version = json.loads(DIGESTS.read_text())["llama-cpp-python"]
    return done, tmp_path / "cache" / "cllm" / f"templates-{version}"


def test_templates_are_unpacked_once_from_the_version_that_the_tests_name(tmp_path: Path) -> None:
    version = json.loads(DIGESTS.read_text())["llama-cpp-python"]
    file = tmp_path / SOURCE.format(version)
    file.parent.mkdir(parents=True)
    file.write_text("{{ messages }}")
    archive = f"llama_cpp_python-{version}"
    # Called as: python -m pip download … --dest FOLDER llama-cpp-python==VERSION
    pip = f'echo $* >>{tmp_path}/calls; tar -czf "$8/{archive}.tar.gz" -C {tmp_path} {archive}'
    done, folder = templates(tmp_path, pip)
    assert done.returncode == 0, done.stderr
    assert (folder / "a.jinja").read_text() == "{{ messages }}"
    assert os.listdir(folder.parent) == [folder.name]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 1 and calls[0].endswith(f" llama-cpp-python=={version}")


def test_without_the_package_index_the_tests_run_and_say_why_some_are_skipped(
    tmp_path: Path,
) -> None:
    done, folder = templates(tmp_path, "exit 1")
    assert done.returncode == 0
    assert "will be skipped" in done.stderr
    assert os.listdir(folder.parent) == []


# Progress and failure


@pytest.mark.parametrize("output", [NINJA, MAKE], ids=["ninja", "make"])
def test_compiling_is_told_every_ten_percent_where_there_is_no_terminal(
    output: str, log: Path
) -> None:
    done = shell(f"LOG={log}; show_progress", feed=output)
    told = [int(line.split()[2]) for line in done.stderr.splitlines()]
    assert told == [0, *range(10, 101, 10)]
    assert log.read_text() == output


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "memory ran out"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for llama-cpp-python", "check the network"),
        ("CMake Error: No CMAKE_CXX_COMPILER could be found.", "build-essential"),
        ("something else", "see the log in"),
    ],
)
def test_a_failure_shows_the_end_of_the_log_and_a_remedy(said: str, remedy: str, log: Path) -> None:
    log.write_text("much before\n" * 1000 + said + "\n")
    done = shell(f"LOG={log}; failed 'compiling llama.cpp'")
    assert done.returncode == 1
    assert said in done.stderr
    assert "compiling llama.cpp failed" in done.stderr
    assert remedy in done.stderr
    assert len(done.stderr.splitlines()) < 40


def test_a_failing_pip_is_a_failure_in_spite_of_the_pipe(log: Path) -> None:
    done = shell(f"LOG={log}; {{ echo '[1/2] x'; exit 3; }} 2>&1 | show_progress || echo failed")
    assert done.stdout == "failed\n"


@pytest.mark.parametrize(
    ("version", "renewed"),
    [("22.0.2", True), ("22.2", False), ("23.2.1", False), ("24.1b1", False)],
)
def test_a_pip_that_lacks_what_is_asked_of_it_is_renewed(
    tmp_path: Path, version: str, renewed: bool
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text(f"__version__ = {version!r}")
    (tmp_path / "pip" / "__main__.py").write_text("import sys; print(*sys.argv[1:])")
    program(tmp_path / "bin", "python", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    done = shell(f"VENV={tmp_path}; LOG={tmp_path}/log; renew_pip; cat {tmp_path}/log || true")
    assert done.returncode == 0
    assert done.stdout == ("install --upgrade pip\n" if renewed else "")


# Style


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    scripts = [*SCRIPTS.glob("*.sh"), SCRIPTS.parent / ".ci" / "run"]
    done = subprocess.run(
        ["shellcheck", "-x", *scripts], capture_output=True, text=True, timeout=60, check=False,
        cwd=SCRIPTS.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
