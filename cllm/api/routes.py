"""All APIs in one handler: their routes, and what guards them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from cllm.api.anthropic import routes as anthropic
from cllm.api.envelopes import success, too_many_requests
from cllm.api.errors import describe
from cllm.api.keys import OPEN, require_key
from cllm.api.lanes import LARGE, Answer, Endpoint, Lane, check_displaced
from cllm.api.llama_server import routes as llama_server
from cllm.api.metering import metered
from cllm.api.metrics import Metrics
from cllm.api.native import routes as native
from cllm.api.native.health import unavailable
from cllm.api.native.routes import NATIVE
from cllm.api.ollama import routes as ollama
from cllm.api.openai import routes as openai
from cllm.api.openapi import OpenApi, answers, docs
from cllm.api.route import Family, Route
from cllm.api.schemas import TOO_DEEP
from cllm.api.service import Service, State
from cllm.api.submission import Submission
from cllm.api.tenants import is_anthropic
from cllm.engine import ConstraintPending, EngineError, PromptTooLong, QueueFull
from cllm.http import HttpError, HttpHandler, HttpRequest, HttpResponse
from cllm.http.incoming import BodyMemory
from cllm.version import __version__

# The first with a matching prefix applies.
FAMILIES = (anthropic.FAMILY, openai.FAMILY, ollama.FAMILY, llama_server.FAMILY, NATIVE)

OPENAPI = "/openapi.json"
# Endpoints that report the state themselves, or do not need a model.
_UNGUARDED = (*OPEN, OPENAPI)


def create_handler(
    service: Service,
    is_open: Callable[[HttpRequest], bool] | None = None,
    uncounted: Collection[str] = (),
) -> HttpHandler:
    """A handler with all APIs of one service, for a Server.

    ``/metrics`` and ``/health`` include the server once ``service.server_stats`` is set.
    is_open: requests that need no key. uncounted: paths that the limits of keys do not apply to.
    """
    handler = HttpHandler()
    metrics = Metrics(service)
    submission = Submission(service, metrics)
    tenants = service.tenants
    openapi = OpenApi(_family, keyed=tenants.keyed)

    def index(request: HttpRequest) -> HttpResponse:
        listed = [
            {"method": r.method, "path": r.path, "description": r.description} for r in routes
        ]
        return success({"name": "cLLM", "version": __version__, "endpoints": listed})

    openapi.routes = routes = (
        Route("GET", "/", "List of endpoints", index, None, answers.Success[answers.Index]),
        Route("GET", OPENAPI, "This API as an OpenAPI 3.1 document",
              openapi.endpoint, None, dict[str, Any]),
        *(
            Route("GET", path, "This API as a page for browsers", docs.page,
                  content_type=docs.content_type(path))
            for path in docs.PATHS
        ),
        *native.routes(service, submission, metrics),
        *openai.routes(service, submission),
        *anthropic.routes(service, submission),
        *ollama.routes(service, submission),
        *llama_server.routes(service, submission, handler),
    )  # fmt: skip

    handler.error_body = _error_body
    if tenants.keyed:
        handler.add_check(require_key(tenants, is_open, uncounted))
    handler.add_middleware(metered(tenants, uncounted))
    memory = BodyMemory(service.settings.body_memory)
    lanes = _Lanes(
        large=Lane(handler, "cllm-large-bodies", memory),
        submissions=Lane(handler, "cllm-submissions", memory),
        constrained=Lane(handler, "cllm-constrained", memory),
    )
    register = {"GET": handler.get, "POST": handler.post, "DELETE": handler.delete}
    for route in routes:
        family, endpoint = _family(route.path), route.endpoint
        if route.path not in _UNGUARDED:
            endpoint = _guarded(service, family, endpoint, lanes, generates=route.generates)
            if route.wakes:
                endpoint = _waking(service, endpoint, lanes)
        if family.around is not None:
            endpoint = family.around(endpoint)
        register[route.method](route.path, endpoint)
    return handler


def _family(path: str) -> Family:
    return next((family for family in FAMILIES if path.startswith(family.prefixes)), NATIVE)


def _error_body(status: int, message: str, request: HttpRequest | None) -> tuple[bytes, str]:
    """Errors have the shape of the API that was called."""
    if request is None:
        return NATIVE.error_body(status, message)
    family = anthropic.FAMILY if is_anthropic(request) else _family(request.path)
    return family.error_body(status, message)


@dataclass(frozen=True, slots=True)
class _Lanes:
    """Where requests run that would hold a worker; see lanes.py."""

    large: Lane
    submissions: Lane
    constrained: Lane


def _guarded(
    service: Service, family: Family, endpoint: Endpoint, lanes: _Lanes, *, generates: bool
) -> Endpoint:
    """Answer 503 while there is no model, and turn the engine's errors into HTTP's.

    What takes long runs on a lane: large bodies, constraints until they are compiled, and
    generations (`generates`) while no slot is free.
    """

    def refusing(request: HttpRequest) -> Answer:
        try:
            check_displaced(request)
            return endpoint(request)
        except ConstraintPending as pending:
            lane = lanes.large if len(request.body) > LARGE else lanes.constrained
            return lane.run_after(pending, refusing, request)
        except QueueFull as error:
            service.tenants.of(request).note_full_queue()
            if family is NATIVE:
                return too_many_requests(error.retry_after)
            raise describe(error, request.id) from None
        except PromptTooLong as error:
            if family.too_long is None:
                raise describe(error, request.id) from None
            return family.too_long(error)
        except EngineError as error:
            raise describe(error, request.id) from None
        except RecursionError:
            raise HttpError(400, TOO_DEEP) from None

    def guarded(request: HttpRequest) -> Answer:
        if service.state is not State.READY:
            if family is NATIVE:
                return unavailable(service)
            raise service.unavailable()
        if len(request.body) > LARGE:
            return lanes.large.run(refusing, request)
        if generates and (lanes.submissions.busy or service.engine.crowded):
            return lanes.submissions.run(refusing, request)
        return refusing(request)

    return guarded


def _waking(service: Service, endpoint: Endpoint, lanes: _Lanes) -> Endpoint:
    """Hold the model while the endpoint and its answer use it; load it first if it is unloaded."""

    def waking(request: HttpRequest) -> Answer:
        idling = service.idling
        if idling is None:
            return endpoint(request)
        loaded = idling.enter()
        if loaded is None:
            return idling.held(endpoint, request)
        return lanes.submissions.run_when(loaded, partial(woken, loaded), request)

    def woken(loaded: Future[None], request: HttpRequest) -> Answer:
        loaded.result()  # raises HttpError 503
        return waking(request)

    return waking
