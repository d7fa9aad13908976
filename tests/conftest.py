"""What holds for every test."""

from __future__ import annotations

import os

import pytest

# Before llama.cpp is loaded, and for child processes too: threads that spin while they wait for
# each other make small models ten times slower on a machine that other programs use.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def share_of_the_processors() -> None:
    """Give each of several test processes (pytest -n) processors of its own.

    The engines of one then do not compute with as many threads as there are processors, next to
    those of the other. Before a server counts them, and for child processes too.
    """
    worker, count = (
        os.environ.get("PYTEST_XDIST_WORKER"),
        os.environ.get("PYTEST_XDIST_WORKER_COUNT"),
    )
    if worker is None or count is None or not hasattr(os, "sched_setaffinity"):
        return
    mine = sorted(os.sched_getaffinity(0))[int(worker.removeprefix("gw")) :: int(count)]
    if mine:
        os.sched_setaffinity(0, mine)


share_of_the_processors()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failed test's name and reason at once: a run that is cut has no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} ({report.when}): {report.longreprtext[-2000:]}", flush=True)


_died: list[str] = []  # tests during which a process of pytest -n ended


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str) -> None:
    _died.append(crashitem)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell a run that lacks tests from one with failures, by its exit status."""
    if _died:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


@pytest.fixture
def steady_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assume what steps and drafts cost instead of measuring it.

    Whether and how far engines draft then depends on the texts alone, not on the machine's load.
    """
    from tests.engine.engine_helpers import assume_costs

    assume_costs(monkeypatch)


@pytest.fixture
def steady_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caches on disk write only when their engine closes, and read whatever is there.

    What is written and read then depends on the prompts alone, not on the machine's load.
    """
    from tests.engine.engine_helpers import assume_quick_disk

    assume_quick_disk(monkeypatch)
