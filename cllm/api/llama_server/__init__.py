"""llama-server's own endpoints, as clients written for it expect them.

Source: llama.cpp, tools/server/README.md and server-task.cpp (build 1-0c1e570, which
llama-cpp-python 0.3.36 brings along). Names and nesting of fields are its own.
"""

from __future__ import annotations

from cllm.api.llama_server.completion import Completion
from cllm.api.llama_server.errors import error_body, refused
from cllm.api.llama_server.infill import Infill
from cllm.api.llama_server.server import Server
from cllm.api.llama_server.text import Text

__all__ = ["Completion", "Infill", "Server", "Text", "error_body", "refused"]
