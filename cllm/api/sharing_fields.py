"""How a request shares the server with others, by the names of vLLM; all bodies have the fields."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from cllm.api.schemas import INT32, NonEmpty


class SharingFields(Struct, kw_only=True):
    """The fields.

    priority: the lowest is served first. cache_salt: only requests with the same one share cached
    prefixes.
    """

    priority: Annotated[int, Meta(ge=-INT32, le=INT32)] | None = None
    cache_salt: NonEmpty | None = None
