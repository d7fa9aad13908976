"""Records which fields llama-server's answers have, which the tests look for in ours.

    llama-server -m cllm/models/cllm-stories-q8_0.gguf --metrics --port 8081
    python -m tests.tools.llama_server_fields http://127.0.0.1:8081

Sends the requests of tests/api/llama_server_requests.json and writes llama_server_fields.json
next to it: for each the status and the paths of all fields ("a.b"; of a list those of its first
entry, "a[].b"), of a stream those of its first and of its last event.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

FOLDER = Path(__file__).resolve().parent.parent / "api"


def fields(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields in a JSON value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            here = f"{path}.{name}" if path else name
            yield here
            yield from fields(inner, here)
    elif isinstance(value, list) and value:
        yield from fields(value[0], path + "[]")


def answered(base: str, asked: dict[str, Any]) -> dict[str, Any]:
    """One request's status and fields."""
    path, body = asked["path"], asked.get("body")
    if body is None:
        response = requests.get(base + path, timeout=60)
    else:
        response = requests.post(base + path, json=body, timeout=60)
    found: dict[str, Any] = {"status": response.status_code}
    if path == "/metrics":
        lines = response.text.splitlines()
        found["fields"] = sorted(line.split()[0] for line in lines if line.startswith("llamacpp:"))
    elif response.headers["Content-Type"].startswith("text/event-stream"):
        events = [json.loads(e.removeprefix("data: ")) for e in response.text.split("\n\n") if e]
        found["first"] = sorted(fields(events[0]))
        found["last"] = sorted(fields(events[-1]))
    else:
        found["fields"] = sorted(fields(response.json()))
    return found


def main() -> None:
    """Ask a running llama-server and write what it has."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url")
    base = parser.parse_args().url.rstrip("/")
    wanted = json.loads((FOLDER / "llama_server_requests.json").read_text())
    build = requests.get(f"{base}/props", timeout=60).json()["build_info"]
    found = {name: answered(base, asked) for name, asked in wanted.items()}
    text = json.dumps({"llama.cpp": build, "answers": found}, indent=1) + "\n"
    (FOLDER / "llama_server_fields.json").write_text(text)


if __name__ == "__main__":
    main()
