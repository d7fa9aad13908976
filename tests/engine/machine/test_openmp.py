"""The bounds on spinning: set before llama.cpp is loaded, unless the user decides otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cllm.engine.machine.openmp import BOUNDS, runtimes

DECISIONS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
SHOW = f"""
import os
print({{name: os.environ[name] for name in {DECISIONS!r} if name in os.environ}})
"""


def child(code: str, **environment: str) -> str:
    """What some code prints, in a process that has no variable of OpenMP but these."""
    inherited = {name: value for name, value in os.environ.items() if name not in DECISIONS}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_runtimes_are_bounded_before_llama_cpp_is_loaded() -> None:
    code = f"""
import sys
import cllm.engine
assert "llama_cpp" not in sys.modules
{SHOW}"""
    assert child(code).strip() == str(BOUNDS)


def test_the_program_bounds_them_too() -> None:
    code = f"""
import cllm.main
from cllm.option_table import load_settings
from cllm.wiring import engine_config
engine_config(load_settings([], {{}}))
{SHOW}"""
    assert child(code).strip() == str(BOUNDS)


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}])
def test_other_programs_can_be_started_as_the_user_would(given: dict[str, str]) -> None:
    show = SHOW.replace("os.environ", "environment")
    code = f"""
import cllm.engine
from cllm.engine.machine.openmp import environment_without_bounds
environment = environment_without_bounds()
{show}"""
    assert child(code, **given).strip() == str(given)


@pytest.mark.parametrize("name", DECISIONS)
def test_a_variable_that_the_user_has_set_decides(name: str) -> None:
    assert child(f"import cllm.engine\n{SHOW}", **{name: "7"}).strip() == str({name: "7"})


LOAD = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s", stream=__import__("sys").stdout)
from cllm.engine import Engine
from cllm.models import demo_path
for _ in range(2):
    Engine.load(demo_path(), parallel=1, ctx_size=64, threads=1).close()
"""


def own_runtime() -> str:
    """The file of the OpenMP runtime that llama.cpp uses here."""
    code = "import llama_cpp; from cllm.engine.machine.openmp import runtimes; print(*runtimes())"
    found = child(code).split()
    if len(found) != 1:
        pytest.skip("llama.cpp does not use one OpenMP runtime here")
    return found[0]


def test_a_runtime_that_was_there_before_is_told_of_once() -> None:
    path = own_runtime()
    said = child(f"import ctypes; ctypes.CDLL({path!r})\n{LOAD}")
    name = os.path.basename(path)
    assert [line for line in said.splitlines() if "WARNING" in line] == [
        f"WARNING {name} was loaded before cLLM: if its threads spin, generation is slow while "
        "other programs run; import cllm first, or start the process with GOMP_SPINCOUNT="
        f"{BOUNDS['GOMP_SPINCOUNT']} KMP_BLOCKTIME={BOUNDS['KMP_BLOCKTIME']}"
    ]


def test_nothing_is_said_where_the_bounds_are_in_time_or_the_user_decides() -> None:
    assert "WARNING" not in child(LOAD)
    before = f"import ctypes; ctypes.CDLL({own_runtime()!r})\n"
    assert "WARNING" not in child(before + LOAD, OMP_WAIT_POLICY="passive")


def test_runtimes_are_found_by_their_files() -> None:
    import llama_cpp  # noqa: F401 - maps its libraries

    assert all("omp" in path.rpartition("/")[2] for path in runtimes())
