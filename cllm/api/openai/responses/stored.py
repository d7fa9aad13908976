"""``/v1/responses/{id}``: reads and deletes stored responses, and lists their input."""

from __future__ import annotations

from typing import Any

from msgspec import to_builtins

from cllm.api.envelopes import JSON, encode
from cllm.api.openai.responses.schemas import Item
from cllm.api.openai.responses.store import ResponseStore, Stored
from cllm.api.tenants import tenant_of
from cllm.http import HttpError, HttpRequest, HttpResponse

_PAGE, _LONGEST_PAGE = 20, 100  # items, as at OpenAI
_TEXT = {"user": "input_text", "assistant": "output_text"}


class StoredResponses:
    """The endpoints. Each tenant sees only its own responses."""

    __slots__ = ("_store",)

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def read(self, request: HttpRequest) -> HttpResponse:
        """GET ``/v1/responses/{id}``. Raises HttpError 400 and 404."""
        if request.query.get("stream") == "true":
            raise HttpError(400, "stream: a stored response is sent whole; leave it out")
        return HttpResponse.bytes(self._stored(request).response, JSON)

    def delete(self, request: HttpRequest) -> HttpResponse:
        """DELETE ``/v1/responses/{id}``. Raises HttpError 404."""
        id = self._stored(request).id
        self._store.delete(tenant_of(request), id)
        return HttpResponse.bytes(encode({"id": id, "object": "response", "deleted": True}), JSON)

    def input_items(self, request: HttpRequest) -> HttpResponse:
        """GET ``/v1/responses/{id}/input_items``: a page of what the model was given.

        Raises HttpError 400 and 404.
        """
        items = [_shown(item) for item in self._stored(request).given()]
        query = request.query
        order, limit = query.get("order") or "desc", query.get("limit") or str(_PAGE)
        if order not in ("asc", "desc"):
            raise HttpError(400, f'order: "{order[:80]}" is not valid; expected "asc" or "desc"')
        if not (limit.isdecimal() and 1 <= int(limit[:9]) <= _LONGEST_PAGE):
            expected = f"an integer from 1 to {_LONGEST_PAGE}"
            raise HttpError(400, f'limit: "{limit[:80]}" is not valid; expected {expected}')
        if order == "desc":
            items.reverse()
        after = query.get("after")
        if after:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise HttpError(400, f'after: "{after[:80]}" is none of the items')
            items = items[ids.index(after) + 1 :]
        page = items[: int(limit)]
        body = {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }
        return HttpResponse.bytes(encode(body), JSON)

    def _stored(self, request: HttpRequest) -> Stored:
        id = request.path_params["id"]
        stored = self._store.get(tenant_of(request), id)
        if stored is None:
            raise HttpError(404, f'the response "{id[:80]}" is not stored here')
        return stored


def _shown(item: Item) -> dict[str, Any]:
    """The item as OpenAI lists it: a content is a list of parts."""
    shown: dict[str, Any] = {"type": item.type, "status": "completed", **to_builtins(item)}
    if item.type == "message" and isinstance(item.content, str):
        kind = _TEXT.get(item.role or "", "input_text")
        shown["content"] = [{"type": kind, "text": item.content}]
    if item.type == "reasoning":
        shown.setdefault("summary", [])
    return shown
