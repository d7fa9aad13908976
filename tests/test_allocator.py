"""What large requests needed goes back to the system."""

from __future__ import annotations

import gzip
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.test_main import Child

MIB = 2**20
# 29 kB that become 12 MiB of text and 6 million tokens.
BODY = gzip.compress(json.dumps({"text": "a b " * (3 * MIB)}).encode())
HEADERS = {"Content-Encoding": "gzip"}


def resident(child: Child) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{child.process.pid}/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_requests_leave_no_memory_behind() -> None:
    child = Child().ready()
    try:
        url = f"http://127.0.0.1:{child.port}/encode"
        assert requests.post(url, json={"text": "Hello"}, timeout=60).ok
        before = resident(child)

        def send(_: int) -> int:
            return requests.post(url, BODY, headers=HEADERS, timeout=120).status_code

        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(send, range(6))) <= {200, 503}
        assert requests.post(url, json={"text": "Hello"}, timeout=60).ok
        assert resident(child) - before < 64 * MIB
    finally:
        child.close()
