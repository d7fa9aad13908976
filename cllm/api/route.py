"""The parts of an API: its endpoints and the format of its errors."""

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
    """One endpoint: an entry of ``/``, and an operation of ``/openapi.json``.

    body: the schema of the request's body. answer: the type of a whole answer, for its description;
    None: it is not JSON. query: the query parameters and their values.
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
    """An API: the prefixes of its paths, and what its endpoints share.

    error_body: the body of an error with this status and text, and its content type; error: its
    type. too_long: the answer to a prompt that does not fit, if it is more than an error with a
    text. around: the wrapper of each endpoint.
    """

    name: str
    prefixes: tuple[str, ...]
    error_body: Callable[[int, str], tuple[bytes, str]]
    error: Any
    too_long: Callable[[PromptTooLong], HttpResponse] | None = None
    around: Callable[[Endpoint], Endpoint] | None = None
