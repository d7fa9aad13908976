"""What an API consists of: its endpoints, one by one, and the shape of its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cllm.api.lanes import Endpoint
from cllm.api.schemas import Schema
from cllm.http import HttpResponse

if TYPE_CHECKING:
    from cllm.engine import PromptTooLong


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint: a line of ``/``, and an operation of ``/openapi.json``.

    body: what checks the request's. answer: the type of a whole answer, for its description; None:
    it is not JSON. query: the parameters that may stand behind the path, and their values.
    events: whether it can answer with server-sent events.
    """

    method: str
    path: str
    description: str
    endpoint: Endpoint
    body: Schema[Any] | None = None
    answer: Any = None
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    events: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """An API: what its paths begin with, and what is the same for all its endpoints.

    error_body: the body of an error of this status and text, and its content type; error: its type.
    too_long: the answer to a prompt that does not fit, where it is more than an error with a text.
    around: what is put around each endpoint.
    """

    name: str
    prefixes: tuple[str, ...]
    error_body: Callable[[int, str], tuple[bytes, str]]
    error: Any
    too_long: Callable[[PromptTooLong], HttpResponse] | None = None
    around: Callable[[Endpoint], Endpoint] | None = None
