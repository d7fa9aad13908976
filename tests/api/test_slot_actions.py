"""POST /slots/{id}: the shapes of llama-server, and refusals with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine
from tests.api.api_client import Live, serving
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
