"""The native HTTP API: turns requests into generations and tokens into responses."""

from __future__ import annotations

from cllm.api.routes import create_handler
from cllm.api.service import ApiSettings, Service, State

__all__ = ["ApiSettings", "Service", "State", "create_handler"]
