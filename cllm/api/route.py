"""What an API consists of: its endpoints and the shape of its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cllm.api.lanes import Endpoint
from cllm.api.schemas import Schema
from cllm.http import HttpResponse
from cllm.http.sse import EVENT_STREAM

if TYPE_CHECKING:
    from cllm.engine import PromptTooLong


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint: an entry of ``/``, and an operation of ``/openapi.json``.

    body: decodes and checks the request's body. answer: the type of a whole response, for its
    description; None: not JSON. query: the parameters of the query, and their values.
    content_type: of an answer that is not JSON. events: whether it can answer with a stream of
    events; event_type: their content type; event: the type of each one's data, for its description.
    asleep: a POST that is answered while the model is unloaded.
    """

    method: str
    path: str
    description: str
    endpoint: Endpoint
    body: Schema[Any] | None = None
    answer: Any = None
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    content_type: str = "text/plain"
    events: bool = False
    asleep: bool = False
    event_type: str = EVENT_STREAM
    event: Any = None

    @property
    def generates(self) -> bool:
        """Whether it gives generations to the engine."""
        return self.events and self.body is not None

    @property
    def wakes(self) -> bool:
        """Whether it needs the model itself, which then is loaded if it is unloaded."""
        return (self.method == "POST" and not self.asleep) or self.path == "/tokenizer_info"


@dataclass(frozen=True, slots=True)
class Family:
    """An API: the prefixes of its paths, and what all its endpoints share.

    error_body: the body of an error of this status and text, and its content type; error: its type.
    too_long: the response to a prompt that does not fit, if it is more than an error with a text.
    around: wraps each endpoint.
    """

    name: str
    prefixes: tuple[str, ...]
    error_body: Callable[[int, str], tuple[bytes, str]]
    error: Any
    too_long: Callable[[PromptTooLong], HttpResponse] | None = None
    around: Callable[[Endpoint], Endpoint] | None = None
