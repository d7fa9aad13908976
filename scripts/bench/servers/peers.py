"""Other HTTP servers with the same answer to GET /health, for comparison."""

from __future__ import annotations

import importlib.util
import sys
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
_SOURCES = {
    "uvicorn (bare ASGI)": ("bare_app", _BARE, ("uvicorn", "httptools", "uvloop")),
    "FastAPI on uvicorn": ("fastapi_app", _FASTAPI, ("fastapi", "uvicorn", "httptools", "uvloop")),
}
NAMES = tuple(_SOURCES)


def missing(name: str) -> list[str]:
    """The packages that this peer needs and that are not installed."""
    return [package for package in _SOURCES[name][2] if importlib.util.find_spec(package) is None]


def start(name: str, folder: Path) -> Server:
    """Write the peer's app into `folder` and serve it: httptools, uvloop, access log off."""
    module, source, _packages = _SOURCES[name]
    (folder / f"{module}.py").write_text(source)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--host", HOST]
    command += ["--port", str(port), "--http", "httptools", "--loop", "uvloop"]
    command += ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    return Server(name, command, port, cwd=folder)
