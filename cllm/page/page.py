"""The page's endpoints in a handler, and which of them need no key."""

from __future__ import annotations

from cllm.http import DeferredResponse, HttpHandler, HttpRequest, HttpResponse
from cllm.http.handler import Answer, Next
from cllm.page.assets import Assets, weights_of
from cllm.page.rendering import Rendering

ROOT = "/"
FILES = "/page/static/"
RENDER = "/page/render"


class Page:
    """The page; `attach` adds it to a handler that has the APIs."""

    def __init__(self) -> None:
        self._assets = Assets()
        self._rendering = Rendering()

    def attach(self, handler: HttpHandler) -> None:
        """Register its endpoints, and answer browsers at `/`."""
        handler.add_middleware(self._root)
        handler.get(FILES + "{version}/{file}", self._file)
        handler.get(FILES + "{version}/{folder}/{file}", self._file)
        handler.post(RENDER, self._rendering.endpoint)

    def _root(self, request: HttpRequest, next: Next) -> Answer:
        if request.path != ROOT or request.method not in ("GET", "HEAD"):
            return next(request)
        if wants_page(request):
            return self._assets.index(request)
        answer = next(request)
        return answer.then(_varying) if isinstance(answer, DeferredResponse) else _varying(answer)

    def _file(self, request: HttpRequest) -> HttpResponse:
        version, _, name = request.path.removeprefix(FILES).partition("/")
        return self._assets.file(request, version, name)


def needs_no_key(request: HttpRequest) -> bool:
    """Whether the request is for the page or one of its files, which hold no secret."""
    if request.method not in ("GET", "HEAD"):
        return False
    return request.path.startswith(FILES) or (request.path == ROOT and wants_page(request))


def wants_page(request: HttpRequest) -> bool:
    """Whether the client names text/html and does not prefer JSON (RFC 9110 section 12.5.1)."""
    weights = weights_of(request.headers.get("accept") or "")
    return weights.get("text/html", 0.0) > weights.get("application/json", 0.0)


def _varying(response: HttpResponse) -> HttpResponse:
    """Caches keep the page and the JSON apart."""
    response.headers += [("Vary", "Accept")]
    return response
