"""The shell smoke test: passes against this server, and fails against a wrong one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cllm.api.keys import require_key
from cllm.api.tenants import Tenants
from cllm.http import HttpHandler, HttpResponse, Server

SCRIPT = Path(__file__).parent.parent / "scripts" / "smoke.sh"


def smoke(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CLLM_")}
    return subprocess.run(
        [SCRIPT, *argv], env=own | {"PYTHON": sys.executable} | environ, capture_output=True,
        text=True, timeout=110, stdin=subprocess.DEVNULL, check=False, cwd="/",
    )  # fmt: skip


def test_it_starts_a_server_and_every_check_passes() -> None:
    done = smoke()
    assert done.returncode == 0, done.stdout + done.stderr
    *checks, last = done.stdout.splitlines()
    assert last == "all checks passed"
    assert all(line.startswith("ok   ") for line in checks)
    for path in (
        "GET  / ", "GET  /health", "POST /generate ", "POST /generate_stream", "POST /encode",
        "POST /decode", "POST /benchmark", "GET  /model/info", "GET  /metrics",
    ):  # fmt: skip
        assert any(path in line for line in checks), path


def test_it_stops_at_the_first_wrong_answer_and_shows_it() -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.json({"success": True, "data": {"name": "x"}}))
    with Server(handler, port=0) as server:
        done = smoke(f"http://127.0.0.1:{server.port}/")
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL GET  / ")
    assert '"name":"x"' in done.stdout


def test_it_sends_the_key_that_the_environment_holds() -> None:
    handler = HttpHandler()
    handler.add_check(require_key(Tenants(["sk-1"])))
    with Server(handler, port=0) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert "status 401" in smoke(url).stdout
        assert "status 404" in smoke(url, CLLM_API_KEY="sk-1,sk-2").stdout


def test_it_fails_where_nobody_listens() -> None:
    done = smoke("http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL GET  / ")


def test_it_explains_itself() -> None:
    done = smoke("--help")
    assert done.returncode == 0
    assert "scripts/smoke.sh http://" in done.stdout
    assert smoke("--nonsense").returncode == 1
