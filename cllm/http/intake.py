"""Between the connections of a server and its handler: CORS, content codings, early refusals."""

from __future__ import annotations

from cllm.http.content_coding import check_coding, decode
from cllm.http.errors import HttpError
from cllm.http.forwarded import TrustedProxies
from cllm.http.handler import Answer, HttpHandler, Middleware
from cllm.http.incoming import BodyMemory, IncomingBody
from cllm.http.limits import ServerConfig
from cllm.http.request import HttpRequest
from cllm.http.response import HttpResponse


class Intake:
    """Passes requests to the handler and refuses those whose body need not be read.

    outermost: a middleware around the handler and around the refusals, such as CORS.
    handle: the handler's answer to a complete request; raises nothing.
    """

    def __init__(
        self, handler: HttpHandler, config: ServerConfig, outermost: Middleware | None = None
    ) -> None:
        self.memory = BodyMemory(config.body_memory)
        self.handler = handler
        self._config = config
        self.proxies = TrustedProxies(config.trusted_proxies) if config.trusted_proxies else None
        self._outermost = outermost
        self.handle = handler.handle_request if outermost is None else self._handle

    def _handle(self, request: HttpRequest) -> Answer:
        assert self._outermost is not None
        return self._outermost(request, self.handler.handle_request)

    def handle_coded(self, request: HttpRequest) -> Answer:
        """The same for a body with a Content-Encoding, which is decoded before."""
        refusal = self.handler.before_body(request)  # no decoding for refused clients
        if refusal is not None:
            return self._around(request, refusal)
        try:
            decode(request, self._config.limits.body, self.memory)
        except HttpError as error:
            return self.error(error, request)
        return self.handle(request)

    def client_of(self, request: HttpRequest, peer: tuple[str, int]) -> tuple[str, int]:
        """The client of a request that came from `peer`, which may be a proxy."""
        return peer if self.proxies is None else self.proxies.client_of(peer, request.headers)

    def begin(self, request: HttpRequest) -> IncomingBody:
        """The state of a body that is not complete."""
        return IncomingBody(request, self.memory, self._config)

    def refusal(self, request: HttpRequest, length: int) -> HttpResponse | None:
        """The response to a head whose body need not be read; None: read the body.

        length: of the body, if it was announced.
        """
        response = self.handler.before_body(request)
        if response is not None:
            return self._around(request, response)
        try:
            check_coding(request)
            self.memory.check(length)
        except HttpError as error:
            return self.error(error, request)
        return None

    def error(self, error: HttpError, request: HttpRequest) -> HttpResponse:
        """The response for an error that the handler does not see."""
        return self._around(request, self.handler.error_response(error, request))

    def _around(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        if self._outermost is None:
            return response
        answer = self._outermost(request, lambda request: response)
        assert isinstance(answer, HttpResponse)
        return answer
