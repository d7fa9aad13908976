"""POST /slots/{id}: the shapes of llama-server, and refusals with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, SamplingParams
from cllm.engine.scheduling.commands import MOST_FOR_SLOT
from tests.api.api_client import PATIENCE, Live, begin_post, eventually, read_until, serving
from tests.engine.engine_helpers import held
from tests.random_model import random_path

PROMPT = [20 + i % 300 for i in range(100)]


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Live]:
    with (
        Engine.load(
            random_path(), parallel=1, ctx_size=256, cache_ram=0, slot_save_path=str(tmp_path)
        ) as engine,
        serving(engine) as live,
    ):
        yield live


def act(live: Live, action: str, body: Any = None, slot: object = 0) -> Any:
    response = live.post(f"/slots/{slot}?action={action}", body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_slot_is_saved_erased_and_restored(keeping: Live, tmp_path: Path) -> None:
    keeping.engine.generate(PROMPT, max_tokens=1)
    saved = act(keeping, "save", {"filename": "talk.bin"})
    size = (tmp_path / "talk.bin").stat().st_size
    assert saved.pop("timings")["save_ms"] > 0
    assert saved == {"id_slot": 0, "filename": "talk.bin", "n_saved": 100, "n_written": size}
    assert act(keeping, "erase") == {"id_slot": 0, "n_erased": 100}
    restored = act(keeping, "restore", {"filename": "talk.bin"})
    assert restored.pop("timings")["restore_ms"] > 0
    assert restored == {"id_slot": 0, "filename": "talk.bin", "n_restored": 100, "n_read": size}
    done = keeping.engine.generate([*PROMPT, 7], max_tokens=1)
    assert done.usage.cached_tokens == 100


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/slots/0?action=save", {"filename": "../x"}, "filename"),
        ("/slots/0?action=save", {"file": "x"}, "filename"),
        ("/slots/0?action=save", b"", "filename"),
        ("/slots/0?action=restore", {"filename": "nothing"}, "nothing"),
        ("/slots/0?action=save", {"filename": "empty"}, "holds tokens"),
        ("/slots/1?action=erase", {}, "id_slot"),
        ("/slots/x?action=erase", {}, "id_slot"),
        ("/slots/0?action=fly", {}, "save, restore or erase"),
        ("/slots/0", {}, "save, restore or erase"),
    ],
)
def test_what_cannot_be_done_is_refused(keeping: Live, path: str, body: Any, names: str) -> None:
    response = keeping.post(path, body)
    assert response.status_code == 400, response.text
    assert names in response.text


def test_without_a_directory_it_is_not_implemented(live: Live) -> None:
    response = live.post("/slots/0?action=save", {"filename": "x"})
    assert response.status_code == 501
    assert "--slot-save-path" in response.text


def waiting(live: Live) -> int:
    return sum(map(len, live.engine._scheduler._commands._by_tenant.values()))


@contextmanager
def busy(live: Live) -> Iterator[None]:
    """Slot 0 reads PROMPT until the block ends."""
    with held(live.engine) as reached:
        live.engine.submit(PROMPT, SamplingParams(max_tokens=1))
        assert reached.wait(PATIENCE)
        yield


@pytest.mark.parametrize("action", ["save", "restore", "erase"])
def test_a_client_that_leaves_takes_its_command_along(keeping: Live, action: str) -> None:
    with busy(keeping):
        for _ in range(2 * MOST_FOR_SLOT):
            with begin_post(keeping, f"/slots/0?action={action}", {"filename": "x"}):
                eventually(lambda: waiting(keeping) == 1, "the command waits")
            eventually(lambda: waiting(keeping) == 0, "the command is gone")


def test_a_client_has_four_commands_for_a_slot(keeping: Live, tmp_path: Path) -> None:
    with ExitStack() as peers:
        with busy(keeping):
            for number in range(MOST_FOR_SLOT):
                fields = {"filename": f"f{number}"}
                peers.enter_context(begin_post(keeping, "/slots/0?action=save", fields))
                eventually(lambda n=number: waiting(keeping) == n + 1, "it waits")  # type: ignore[misc]
            refused = keeping.post("/slots/0?action=save", {"filename": "more"})
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) > 0
            assert refused.json()["error"]["message"].startswith("the queue is full (4 commands")
            fields = {"filename": "other"}
            other = begin_post(keeping, "/slots/0?action=save", fields, source="127.0.0.2")
            peers.enter_context(other)
            eventually(lambda: waiting(keeping) == MOST_FOR_SLOT + 1, "another client's waits")
        assert b"n_saved" in read_until(other, b"}}")
    assert {path.name for path in tmp_path.iterdir()} == {"f0", "f1", "f2", "f3", "other"}
    assert act(keeping, "erase")["n_erased"] == len(PROMPT)
