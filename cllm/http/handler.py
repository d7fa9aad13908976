"""From a request to a response: routes, middleware, and exceptions as responses."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from cllm.http.body_stream import BodyStream, compact_json
from cllm.http.deferred import DeferredResponse
from cllm.http.errors import HttpError
from cllm.http.report import report_failure
from cllm.http.request import HttpRequest
from cllm.http.response import JSON, HttpResponse, field_line
from cllm.http.sse import IterableEventStream

_log = logging.getLogger("cllm.http")

Answer = HttpResponse | DeferredResponse
Next = Callable[[HttpRequest], Answer]
Middleware = Callable[[HttpRequest, Next], Answer]
# An endpoint may also return text, bytes, a dict or list (JSON) or None (204).
Endpoint = Callable[[HttpRequest], Any]
StreamingEndpoint = Callable[[HttpRequest], BodyStream | Iterable[Any] | Answer]
ErrorBody = Callable[[int, str, HttpRequest | None], tuple[bytes, str]]
Check = Callable[[HttpRequest], None]


class Route(NamedTuple):
    """A method and a path; the path may have parameters, as in "/slots/{id}"."""

    method: str
    path: str


def json_error_body(status: int, message: str, request: HttpRequest | None) -> tuple[bytes, str]:
    """(body, its content type) of an error response."""
    return compact_json({"success": False, "error": message}), JSON


class HttpHandler:
    """Routes and middleware; register before the server starts, then call from any thread.

    Paths match exactly, or by segment: "/slots/{id}" fills `request.path_params["id"]` with one
    non-empty segment. Exact paths come before those with parameters, and these in order of
    registration. `error_body` makes the body of every error response.
    """

    def __init__(self) -> None:
        self.error_body: ErrorBody = json_error_body
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._templates: dict[str, tuple[re.Pattern[str], dict[str, Endpoint]]] = {}
        self._middleware: list[Middleware] = []
        self._checks: list[Check] = []
        self._chain = self._build_chain()
        self._run_checks = self._guarded(self._check)

    # Registering

    def get(self, path: str, endpoint: Endpoint) -> None:
        """Serve GET, and HEAD with it."""
        self._add("GET", path, endpoint)

    def post(self, path: str, endpoint: Endpoint) -> None:
        self._add("POST", path, endpoint)

    def put(self, path: str, endpoint: Endpoint) -> None:
        self._add("PUT", path, endpoint)

    def delete(self, path: str, endpoint: Endpoint) -> None:
        self._add("DELETE", path, endpoint)

    def get_streaming(self, path: str, endpoint: StreamingEndpoint) -> None:
        """Serve what the endpoint yields as server-sent events; bytes are sent as is."""
        self._add("GET", path, partial(_stream, endpoint))

    def post_streaming(self, path: str, endpoint: StreamingEndpoint) -> None:
        """As `get_streaming`, for POST."""
        self._add("POST", path, partial(_stream, endpoint))

    def add_middleware(self, middleware: Middleware) -> None:
        """Put `middleware(request, next)` inside those added before; it responds or calls `next`.

        `next` always returns a response: exceptions have become one. It may be a
        DeferredResponse, which `then` changes.
        """
        self._middleware.append(middleware)
        self._chain = self._build_chain()

    def add_check(self, check: Check) -> None:
        """Let `check(request)` refuse requests by their head; it does so by raising HttpError.

        It is a middleware that is also called before the body is read, so that a refused request
        costs only the memory of its head. It must not use `request.body`.
        """
        self._checks.append(check)
        self.add_middleware(partial(_checked, check))

    # Queries

    def routes(self) -> list[Route]:
        tables = [*self._exact.items(), *((p, t[1]) for p, t in self._templates.items())]
        return [Route(method, path) for path, methods in tables for method in methods]

    def has_handler(self, method: str, path: str) -> bool:
        """Whether a request of this method for this path would reach an endpoint."""
        return self._find(method, path)[0] is not None

    # Answering

    def handle_request(self, request: HttpRequest) -> Answer:
        """The response, errors included; raises KeyboardInterrupt and GeneratorExit only."""
        return self._chain(request)

    def before_body(self, request: HttpRequest) -> HttpResponse | None:
        """The refusal of a request whose body is not read yet; None: read it."""
        if not self._checks:
            return None
        answer = self._run_checks(request)
        assert isinstance(answer, HttpResponse)
        return None if answer is _PASSED else answer

    def _check(self, request: HttpRequest) -> HttpResponse:
        for check in self._checks:
            check(request)
        return _PASSED

    def error_response(self, error: HttpError, request: HttpRequest | None = None) -> HttpResponse:
        """The response for an error; request: None if there is none yet."""
        try:
            body, content_type = self.error_body(error.status, error.message, request)
            # This response itself must not fail.
            field_line("Content-Type", content_type)
            if not isinstance(body, bytes):
                raise TypeError(f"the body is a {type(body).__name__}, not bytes")
        except Exception:
            report_failure(_log, "the error_body hook failed")
            body, content_type = json_error_body(error.status, error.message, request)
        return HttpResponse.bytes(body, content_type, error.status, error.headers)

    def _add(self, method: str, path: str, endpoint: Endpoint) -> None:
        if not path.startswith("/"):
            raise ValueError(f"the path {path!r} does not begin with '/'")
        if "{" not in path:
            methods = self._exact.setdefault(path, {})
        else:
            if path not in self._templates:
                self._templates[path] = (_template(path), {})
            methods = self._templates[path][1]
        if method in methods:
            raise ValueError(f"{method} {path} already has an endpoint")
        methods[method] = endpoint

    def _build_chain(self) -> Next:
        chain = self._guarded(self._dispatch)
        for middleware in reversed(self._middleware):
            chain = self._guarded_around(middleware, chain)
        return chain

    def _guarded(self, step: Endpoint) -> Next:
        """`step`, with exceptions and plain values turned into responses."""

        def guarded(request: HttpRequest) -> Answer:
            try:
                answer = step(request)
                return answer if type(answer) is HttpResponse else _response(answer)
            except BaseException as error:
                return self._failed(error, request)

        return guarded

    def _guarded_around(self, middleware: Middleware, next: Next) -> Next:
        """The same for a middleware: one call less than for a step that calls it."""

        def guarded(request: HttpRequest) -> Answer:
            try:
                answer = middleware(request, next)
                return answer if type(answer) is HttpResponse else _response(answer)
            except BaseException as error:
                return self._failed(error, request)

        return guarded

    def _failed(self, error: BaseException, request: HttpRequest) -> HttpResponse:
        """The response for an exception; by its handler, which logs it."""
        if isinstance(error, HttpError):
            return self.error_response(error, request)
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise error
        # SystemExit and asyncio's CancelledError too
        id = request.id or uuid.uuid4().hex
        report_failure(_log, "request %s: %s %s failed", id, request.method, request.path)
        message = f"internal error; see the log for request {id}"
        return self.error_response(HttpError(500, message), request)

    def _dispatch(self, request: HttpRequest) -> Any:
        methods = self._exact.get(request.path)
        if methods is not None:
            endpoint = methods.get(request.method)
            if endpoint is not None:
                return endpoint(request)
        endpoint, params, allowed = self._find(request.method, request.path)
        if endpoint is not None:
            request.path_params = params
            return endpoint(request)
        if request.method == "OPTIONS" and allowed:
            return HttpResponse.empty(204, [("Allow", allowed)])
        if allowed:
            message = f"{request.method} is not supported for {request.path}; use one of {allowed}"
            raise HttpError(405, message, [("Allow", allowed)])
        raise HttpError(404, f"no endpoint has the path {request.path}")

    def _find(self, method: str, path: str) -> tuple[Endpoint | None, dict[str, str], str]:
        """(endpoint, path parameters, the methods that the path allows)."""
        found: list[tuple[dict[str, Endpoint], dict[str, str]]] = []
        if path in self._exact:
            found.append((self._exact[path], {}))
        for pattern, methods in self._templates.values():
            match = pattern.fullmatch(path)
            if match is not None:
                found.append((methods, match.groupdict()))
        for wanted in (method, "GET") if method == "HEAD" else (method,):
            for methods, params in found:
                if wanted in methods:
                    return methods[wanted], params, ""
        if path == "*":  # RFC 9110 section 9.3.7: OPTIONS * is about the server as a whole
            allowed = {route.method for route in self.routes()}
        else:
            allowed = {method for methods, _ in found for method in methods}
        if not allowed:
            return None, {}, ""
        allowed |= {"OPTIONS", "HEAD"} if "GET" in allowed else {"OPTIONS"}
        return None, {}, ", ".join(sorted(allowed))


def _checked(check: Check, request: HttpRequest, next: Next) -> Answer:
    check(request)
    return next(request)


_PASSED = HttpResponse.empty()  # all checks

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _template(path: str) -> re.Pattern[str]:
    segments = []
    names = set()
    for segment in path.split("/"):
        parameter = _PARAMETER.fullmatch(segment)
        if parameter is None:
            if "{" in segment or "}" in segment:
                raise ValueError(
                    f"{path!r}: a parameter must be a whole segment, as in '/slots/{{id}}'"
                )
            segments.append(re.escape(segment))
        elif parameter[1] in names:
            raise ValueError(f"{path!r} has the parameter {parameter[1]!r} twice")
        else:
            names.add(parameter[1])
            segments.append(f"(?P<{parameter[1]}>[^/]+)")
    return re.compile("/".join(segments))


def _response(value: Any) -> Answer:
    if isinstance(value, (HttpResponse, DeferredResponse)):
        return value
    if value is None:
        return HttpResponse.empty()
    if isinstance(value, str):
        return HttpResponse.text(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return HttpResponse.bytes(bytes(value))
    if isinstance(value, (dict, list)):
        return HttpResponse.json(value)
    raise TypeError(f"a handler returned a {type(value).__name__}, which is not a response")


def _stream(endpoint: StreamingEndpoint, request: HttpRequest) -> Answer:
    answer = endpoint(request)
    if isinstance(answer, (HttpResponse, DeferredResponse)):
        return answer
    if isinstance(answer, BodyStream):
        return HttpResponse.sse(answer)
    if isinstance(answer, (str, bytes, dict)):
        answer = [answer]  # one event rather than one for each character or key
    stream = IterableEventStream(answer)
    stream.prime()
    return HttpResponse.sse(stream)
