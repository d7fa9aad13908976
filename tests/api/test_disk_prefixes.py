"""Prefixes on disk, seen by clients: they outlive a restart, for their own key only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests

from cllm.api import ApiSettings
from cllm.engine import Engine
from tests.api.api_client import PATIENCE, Live, events, serving
from tests.api.keyed import LONG_PROMPT, RING, see
from tests.random_model import random_path

KEYED = ApiSettings(key_ring=RING, api_keys=("plain",))


def cached(live: Live, key: str, **fields: Any) -> int:
    body = {"prompt": LONG_PROMPT, "n_predict": 1, **fields}
    answer = live.post("/completion", body, headers={"x-api-key": key})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["timings"]["cache_n"])


@pytest.mark.usefixtures("steady_disk")
def test_a_restart_keeps_prefixes_for_their_own_key(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"

    def load() -> Engine:
        return Engine.load(random_path(), parallel=4, ctx_size=512, cache_disk=str(folder))

    with load() as engine, serving(engine, KEYED) as live:
        for key, salt in (("alice", None), ("bob", "s"), ("plain", None)):
            assert cached(live, key, cache_salt=salt) == 0
    sizes = [path.stat().st_size for path in folder.glob("*/*.prefix")]
    assert len(sizes) == 3
    other = ApiSettings(key_ring=RING, api_keys=("other", "plain"))  # "key 1" is another one
    with load() as engine, serving(engine, other) as live:
        assert cached(live, "bob") == cached(live, "few") == cached(live, "other") == 0
        assert cached(live, "alice") > 100
        assert cached(live, "plain") > 100
        assert cached(live, "bob", cache_salt="s") > 100
        with requests.get(
            live.url + "/monitor", stream=True, timeout=PATIENCE, headers={"x-api-key": "root"}
        ) as watched:
            shown = next(events(watched.iter_content(None)))["engine"]
        figures = see(live, "root", "/metrics").text
    assert shown["cache_disk_entries"] == 3
    assert shown["cache_disk_bytes"] == sum(sizes) < shown["cache_disk_limit"]
    for line in ("cllm_disk_prefixes_read_total 3.0", "cllm_disk_prefixes 3.0"):
        assert line in figures
