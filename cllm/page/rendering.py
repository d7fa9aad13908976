"""POST `/page/render`: Markdown to HTML that is safe to put into the page."""

from __future__ import annotations

import threading
from collections import OrderedDict
from hashlib import sha256

from cllm.http import HttpError, HttpRequest, HttpResponse

MOST = 32 * 1024
"""Bytes of Markdown in one request."""
_CACHED = 8 * 1024 * 1024  # bytes of HTML

MISSING = "rendering needs packages that are not installed; in cLLM's folder: pip install '.[page]'"


class Rendering:
    """The endpoint, with a cache by content: a page that is loaded again asks for the same."""

    def __init__(self, most: int = MOST, cached: int = _CACHED) -> None:
        self._most = most
        self._room = cached
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, str] = OrderedDict()

    def endpoint(self, request: HttpRequest) -> HttpResponse:
        """`{"markdown": TEXT}` to `{"html": TEXT}`; raises HttpError 400, 413, 501."""
        text = self._asked(request)
        key = sha256(text.encode("utf-8", "surrogatepass")).digest()
        html = self._cached(key)
        if html is None:
            try:
                from cllm.page.markdown import render
            except ImportError:
                raise HttpError(501, MISSING) from None
            html = render(text)
            self._keep(key, html)
        return HttpResponse.json({"html": html})

    def _asked(self, request: HttpRequest) -> str:
        if len(request.body) > 8 * self._most:  # escapes such as \u4e2d need more than the text
            raise self._too_long()
        body = request.json()
        text = body.get("markdown") if isinstance(body, dict) else None
        if not isinstance(text, str):
            raise HttpError(400, 'markdown: expected a string, as in {"markdown": "*text*"}')
        if len(text.encode("utf-8", "surrogatepass")) > self._most:
            raise self._too_long()
        return text

    def _too_long(self) -> HttpError:
        return HttpError(413, f"markdown: longer than {self._most} bytes; send its blocks singly")

    def _cached(self, key: bytes) -> str | None:
        with self._lock:
            html = self._cache.get(key)
            if html is not None:
                self._cache.move_to_end(key)
            return html

    def _keep(self, key: bytes, html: str) -> None:
        with self._lock:
            if key in self._cache:
                return
            self._cache[key] = html
            self._room -= len(html)
            while self._room < 0:
                _, dropped = self._cache.popitem(last=False)
                self._room += len(dropped)
