"""Fetches the packages of Node that tests use; does nothing for those that are there.

Each set is installed once, in pinned versions, into a folder of the user's cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cllm.engine.machine.user_cache import user_cache

CLIENTS = (
    "openai@7.57.0",
    "ai@6.0.326",
    "@ai-sdk/openai-compatible@2.0.92",
    "@anthropic-ai/sdk@1.14.0",
    "@openai/agents@0.20.0",
    "ollama@0.6.4",
)
AXE = ("axe-core@4.14.1",)
LONGEST = 240  # seconds for one set; a network that is slower or missing does not hold up the tests
REMEDY = "python -m tests.tools.fetch_node fetches them"
_INSTALL = (
    "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error",
    "--fetch-retries=1", "--fetch-timeout=30000",
)  # fmt: skip


def folder_of(packages: tuple[str, ...]) -> Path:
    """Where the packages are once they have been fetched."""
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    return user_cache() / f"node-{digest}"


def fetch(packages: tuple[str, ...]) -> str:
    """Install the packages; why they could not be, or nothing."""
    folder = folder_of(packages)
    if shutil.which("npm") is None:
        return "npm is not installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="node-", dir=folder.parent))
    try:
        made.joinpath("package.json").write_text('{"private": true}', encoding="utf-8")
        run = subprocess.run(
            [*_INSTALL, *packages], cwd=made, capture_output=True, timeout=LONGEST, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if run.returncode != 0:
            return f"npm failed: {run.stderr.decode(errors='replace').strip()[-300:]}"
        if not folder.is_dir():  # otherwise another run was faster
            made.rename(folder)
    except subprocess.TimeoutExpired:
        return f"npm took longer than {LONGEST} s"
    except OSError as error:
        return str(error)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return ""


def main() -> None:
    """Fetch what is missing; one line for each set. Exit status 1 if one is missing at the end."""
    status = 0
    for packages in (AXE, CLIENTS):
        names = ", ".join(packages)
        if folder_of(packages).is_dir():
            print(f"the packages of Node are there: {names}")
            continue
        print(f"fetching packages of Node for the tests: {names}", flush=True)
        if fault := fetch(packages):
            print(f"{fault}; their tests are skipped", flush=True)
            status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
