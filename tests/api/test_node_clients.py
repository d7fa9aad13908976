"""Promises to the clients of Node: each works unmodified. scripts/test.sh fetches them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.api.api_client import Live, eventually, idle
from tests.tools.fetch_node import CLIENTS, REMEDY, folder_of

MODEL = "cllm-stories-q8_0"
LONGEST = 120  # seconds of one client: Node on a slow machine needs a while to load the packages
SCRIPT = Path(__file__).with_name("node_clients.mjs")


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder with the packages."""
    folder = folder_of(CLIENTS)
    if shutil.which("node") is None:
        pytest.skip("node is not installed (Debian, Ubuntu: apt-get install nodejs npm)")
    if not folder.is_dir():
        pytest.skip(f"the clients are not installed; {REMEDY}")
    return folder


@pytest.mark.timeout(2 * LONGEST)
@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("openai", {
            "same": True, "items": ["message", "message", "message"], "read": True, "gone": 404,
        }),
        ("ai", {"same": True}),
        ("anthropic", {"same": True, "name": MODEL}),
        ("ollama", {
            "same": True, "made": {"a": 7}, "name": MODEL, "capabilities": ["completion", "tools"],
            "vectors": 501,
        }),
        ("agents", {"chat_completions": True, "responses": True, "continued": True}),
    ],
)  # fmt: skip
def test_a_client_of_node_works(
    stories: Live, packages: Path, client: str, expected: dict[str, Any]
) -> None:
    with tempfile.NamedTemporaryFile(suffix=".mjs", dir=packages) as script:  # finds node_modules
        script.write(SCRIPT.read_bytes())
        script.flush()
        run = subprocess.run(
            ["node", script.name, client, stories.url, MODEL],
            capture_output=True,
            timeout=LONGEST,
            check=False,
        )
    assert run.returncode == 0, run.stderr.decode()
    assert json.loads(run.stdout) == expected
    eventually(lambda: idle(stories.engine), "the engine has no work left")
