"""``/v1/responses``: makes responses, and stores them in memory for those that continue them."""

from __future__ import annotations

from cllm.api.openai.responses.endpoint import Responses
from cllm.api.openai.responses.store import ResponseStore
from cllm.api.openai.responses.stored import StoredResponses

__all__ = ["ResponseStore", "Responses", "StoredResponses"]
