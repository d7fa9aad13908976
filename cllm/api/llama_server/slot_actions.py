"""POST ``/slots/{id}``: save a slot's prefix to a file, restore or erase it, as llama-server does.

The engine's threads do the work; the answer follows at its end, and no worker waits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from cllm.api.envelopes import JSON, encode
from cllm.api.errors import describe
from cllm.api.schemas import Schema
from cllm.api.service import Service
from cllm.api.tenants import scope_of, tenant_of
from cllm.engine import InvalidRequest
from cllm.http import DeferredResponse, HttpHandler, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine.cache.sessions import Session

_T = TypeVar("_T")


ACTIONS = ("save", "restore", "erase")


class File(Struct):
    """Body of saving and restoring."""

    filename: str


FILE = Schema(File)


class SlotActions:
    """The endpoint; `handler` formats later errors."""

    __slots__ = ("_handler", "_service")

    def __init__(self, service: Service, handler: HttpHandler) -> None:
        self._service = service
        self._handler = handler

    def endpoint(self, request: HttpRequest) -> DeferredResponse:
        """``?action=save|restore|erase``.

        Raises InvalidRequest, NotEnabled, QueueFull, HttpError 503.
        """
        sessions = self._service.engine.sessions
        slot = _slot(request.path_params["id"])
        action = request.query.get("action", "")
        owner = scope_of(request, self._service.divides_prefixes, None).owner
        tenant = tenant_of(request)
        if action == "save":
            saved = sessions.save(slot, _filename(request), owner, tenant)
            return self._answer(saved, _saved, request)
        if action == "restore":
            restored = sessions.restore(slot, _filename(request), owner, tenant)
            return self._answer(restored, _restored, request)
        if action == "erase":
            erased = sessions.erase(slot, owner, tenant)
            return self._answer(erased, lambda n: {"id_slot": slot, "n_erased": n}, request)
        raise InvalidRequest("action", action, "save, restore or erase")

    def _answer(
        self, future: Future[_T], body: Callable[[_T], dict[str, Any]], request: HttpRequest
    ) -> DeferredResponse:
        answer = DeferredResponse()

        def done(ended: Future[_T]) -> None:
            if ended.cancelled():
                return
            error = ended.exception()
            if error is None:
                response = HttpResponse.bytes(encode(body(ended.result())), JSON)
            else:
                response = self._handler.error_response(describe(error, request.id), request)
            answer.resolve(response)

        answer.on_cancel(lambda _: future.cancel())  # the client has left
        future.add_done_callback(done)
        return answer


def _slot(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InvalidRequest("id_slot", text, "a slot's number")
    return int(text)


def _filename(request: HttpRequest) -> str:
    return FILE.decode(request.body or b"{}").filename


def _saved(session: Session) -> dict[str, Any]:
    return {
        "id_slot": session.slot,
        "filename": session.filename,
        "n_saved": session.n_tokens,
        "n_written": session.n_bytes,
        "timings": {"save_ms": session.seconds * 1000},
    }


def _restored(session: Session) -> dict[str, Any]:
    return {
        "id_slot": session.slot,
        "filename": session.filename,
        "n_restored": session.n_tokens,
        "n_read": session.n_bytes,
        "timings": {"restore_ms": session.seconds * 1000},
    }
