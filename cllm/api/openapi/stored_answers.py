"""The answers of the endpoints of stored responses, for `/openapi.json`."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class Deleted(Struct):
    """A stored response that is gone."""

    id: str
    object: Literal["response"]
    deleted: bool


class ItemList(Struct):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
