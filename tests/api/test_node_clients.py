"""Promises to the clients of Node: each works unmodified. Without npm these tests are skipped.

The packages of pinned versions are installed once into the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.api.api_client import Live, eventually, idle

MODEL = "cllm-stories-q8_0"
PACKAGES = (
    "openai@7.57.0",
    "ai@6.0.326",
    "@ai-sdk/openai-compatible@2.0.92",
    "@anthropic-ai/sdk@1.14.0",
    "@openai/agents@0.20.0",
    "ollama@0.6.4",
)
SCRIPT = Path(__file__).with_name("node_clients.mjs")


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder with the packages; skips where npm cannot install them."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cllm"
    digest = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    folder = cache / f"node-{digest}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="node-", dir=cache))
        made.joinpath("package.json").write_text('{"private": true}', encoding="utf-8")
        options = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        install = ["npm", "install", *options, *PACKAGES]
        try:
            run = subprocess.run(install, cwd=made, capture_output=True, timeout=90, check=False)
        except subprocess.TimeoutExpired:
            shutil.rmtree(made)
            pytest.skip("npm takes too long to install the clients")
        if run.returncode != 0:
            shutil.rmtree(made)
            pytest.skip(f"npm cannot install the clients: {run.stderr.decode()[-300:]}")
        try:
            made.rename(folder)
        except OSError:  # another run was faster
            shutil.rmtree(made)
    return folder


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
            timeout=120,
            check=False,
        )
    assert run.returncode == 0, run.stderr.decode()
    assert json.loads(run.stdout) == expected
    eventually(lambda: idle(stories.engine), "the engine has no work left")
