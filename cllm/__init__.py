"""cLLM: a GGUF language-model server with its own HTTP server and batching engine.

Names are resolved on first use, so that ``from cllm import HttpServer`` never imports llama.cpp
and ``from cllm import Engine`` never opens a socket.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cllm.version import __version__

if TYPE_CHECKING:
    from cllm.engine import Engine, EngineConfig, SamplingParams
    from cllm.http import HttpHandler, HttpRequest, HttpResponse, HttpServer

__all__ = [
    "Engine",
    "EngineConfig",
    "HttpHandler",
    "HttpRequest",
    "HttpResponse",
    "HttpServer",
    "SamplingParams",
    "__version__",
]

_HOME = {
    "Engine": "cllm.engine",
    "EngineConfig": "cllm.engine",
    "SamplingParams": "cllm.engine",
    "HttpHandler": "cllm.http",
    "HttpRequest": "cllm.http",
    "HttpResponse": "cllm.http",
    "HttpServer": "cllm.http",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'cllm' has no attribute {name!r}")
