"""llama-server's own endpoints, as its clients expect them.

Source: llama.cpp, tools/server/README.md and server-task.cpp (build 1-0c1e570, included
in llama-cpp-python 0.3.36). Names and nesting of fields are its own.
"""

from __future__ import annotations

from cllm.api.llama_server.errors import refused

__all__ = ["refused"]
