"""Promises of /docs: a page of our own files alone, which needs no key and shows every endpoint."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from cllm.api import ApiSettings
from cllm.api.openapi import docs
from tests.api.api_client import serving


def test_the_page_and_its_files_need_no_key_and_no_model() -> None:
    with serving(None, ApiSettings(api_keys=("sk-1",))) as live:
        assert live.get("/openapi.json").status_code == 401
        for path in docs.PATHS:
            answer = live.get(path)
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith(docs.content_type(path))
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "script-src 'self'" in policy
            assert "unsafe" not in policy and "*" not in policy


def test_the_policy_lets_the_page_work() -> None:
    """No inline script, style or handler, and every file that it loads is served."""
    with serving(None) as live:
        page = live.get("/docs").text
        used = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert {"docs.js", "docs.css", "openapi.json"} == set(used)
        for file in set(used):
            assert live.get(f"/{file}").status_code == 200
    assert "<style" not in page and not re.search(r"\son\w+=|style=", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.S) == [""]


def test_the_script_builds_no_markup_of_texts() -> None:
    with serving(None) as live:
        script = live.get("/docs.js").text
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in script


def test_the_page_is_small() -> None:
    with serving(None) as live:
        assert sum(len(live.get(path).content) for path in docs.PATHS) < 16_000


SHOWN = """
const spec = JSON.parse(require("fs").readFileSync(0, "utf8"));
const made = [];
class Element {
  constructor(name) { this.name = name; this.children = []; this.dataset = {}; made.push(this); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  addEventListener(kind, call) { if (kind === "toggle") this.toggled = call; }
  get text() { return this.children.map((each) => each.text ?? each).join(""); }
}
const named = new Proxy({}, { get: (all, id) => (all[id] ??= new Element(id)) });
globalThis.document = { getElementById: (id) => named[id],
  createElement: (name) => new Element(name), querySelectorAll: () => [] };
named.key.value = "";
globalThis.fetch = async () => ({ ok: true, json: async () => spec });
import(process.argv[1]).then(() => setTimeout(() => {
  const shown = made.filter((each) => each.dataset.text);
  for (const each of shown) each.toggled();
  console.log(shown.map((each) => each.dataset.text).join("\\n"));
  console.log(named.operations.text);
}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_script_shows_every_operation(tmp_path: object) -> None:
    with serving(None) as live:
        document = live.get("/openapi.json")
        script = live.get("/docs.js").text
    file = f"{tmp_path}/docs.mjs"
    with open(file, "w", encoding="utf-8") as out:
        out.write(script)
    run = subprocess.run(
        ["node", "-e", SHOWN, file], input=document.content, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()
    shown = run.stdout.decode()
    for path, methods in document.json()["paths"].items():
        for method in methods:
            assert f"{method} {path} " in shown
    assert "previous_response_id" in shown and "max_completion_tokens" in shown
