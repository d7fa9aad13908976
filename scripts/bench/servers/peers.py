"""Other HTTP servers with the same answer to GET /health, for comparison."""

from __future__ import annotations

import importlib.util
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from .server import HOST, Server, free_port

# The answer that cLLM gives, so that all send the same body.
_BARE = """
BODY = b'{"success":true,"data":{"status":"healthy","model_loaded":true}}'
HEAD = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": HEAD})
        await send({"type": "http.response.body", "body": BODY})
"""
_FASTAPI = """
from fastapi import FastAPI

app = FastAPI()


@app.get("/health")
async def health():
    return {"success": True, "data": {"status": "healthy", "model_loaded": True}}
"""
_RSGI = """
BODY = '{"success":true,"data":{"status":"healthy","model_loaded":true}}'


async def app(scope, protocol):
    protocol.response_str(200, [("content-type", "application/json")], BODY)
"""
_SOURCES = {
    "uvicorn (bare ASGI)": ("bare_app", _BARE, ("uvicorn", "httptools", "uvloop")),
    "granian (RSGI)": ("rsgi_app", _RSGI, ("granian",)),
    "FastAPI on uvicorn": ("fastapi_app", _FASTAPI, ("fastapi", "uvicorn", "httptools", "uvloop")),
}
NAMES = tuple(_SOURCES)
HYPERCORN = ("hypercorn", "uvloop")  # the packages that it needs


def missing(name: str) -> list[str]:
    """The packages that this peer needs and that are not installed."""
    return not_installed(_SOURCES[name][2])


def not_installed(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def start(
    name: str,
    folder: Path,
    tls: tuple[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Server:
    """Write the peer's app into `folder` and serve it in one process, access log off.

    tls: files of certificate and key, for uvicorn only; context: of a client that trusts them.
    """
    module, source, packages = _SOURCES[name]
    (folder / f"{module}.py").write_text(source)
    port = free_port()
    address = ["--host", HOST, "--port", str(port), "--no-access-log", "--log-level", "warning"]
    if "granian" in packages:
        command = [sys.executable, "-m", "granian", "--interface", "rsgi", "--workers", "1"]
        return Server(name, [*command, *address, f"{module}:app"], port, cwd=folder)
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", *address]
    command += ["--http", "httptools", "--loop", "uvloop", "--lifespan", "off"]
    if tls is not None:
        command += ["--ssl-certfile", tls[0], "--ssl-keyfile", tls[1]]
    return Server(name, command, port, cwd=folder, context=context)


def start_hypercorn(folder: Path, tls: tuple[str, str], context: ssl.SSLContext) -> Server:
    """Hypercorn with HTTP/2 over TLS: uvloop, one worker, no limit of requests a connection."""
    (folder / "bare_app.py").write_text(_BARE)
    (folder / "hypercorn.toml").write_text("keep_alive_max_requests = 1000000000\n")
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", "bare_app:app", "--bind", f"{HOST}:{port}"]
    command += ["--certfile", tls[0], "--keyfile", tls[1], "--worker-class", "uvloop"]
    command += ["--config", "hypercorn.toml"]
    return Server("hypercorn", command, port, cwd=folder, context=context)
