"""Every endpoint on one page: what is served where, and what guards it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cllm.api import anthropic, llama_server, openai, tokens
from cllm.api.benchmark import Benchmarks
from cllm.api.embeddings import Embeddings
from cllm.api.errors import describe
from cllm.api.generate import Generating
from cllm.api.health import health, unavailable
from cllm.api.keys import OPEN, require_key
from cllm.api.large import LARGE, Answer, Endpoint, LargeBodies
from cllm.api.llama_server.slot_actions import SlotActions
from cllm.api.metrics import Metrics
from cllm.api.model_info import model_info
from cllm.api.rerank import Reranking
from cllm.api.responses import error_body, success, too_many_requests
from cllm.api.service import RETRY_AFTER, Service, State
from cllm.api.submission import Submission
from cllm.engine import EngineError, QueueFull
from cllm.http import HttpError, HttpHandler, HttpRequest, HttpResponse
from cllm.version import __version__


@dataclass(frozen=True, slots=True)
class Route:
    """One line of ``/``."""

    method: str
    path: str
    description: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Family:
    """An API beside the native one: the prefix of its paths, and its errors' body and type.

    around: what is put around each of its endpoints.
    """

    prefix: str
    error_body: Callable[[int, str], tuple[bytes, str]]
    around: Callable[[Endpoint], Endpoint] | None = None


# The first whose prefix fits; a path with none is the native API's.
FAMILIES = (
    Family("/v1/messages", anthropic.error_body),
    *(Family(prefix, openai.error_body, openai.timed) for prefix in ("/v1/", "/chat/", "/models")),
    *(
        Family(f"/{name}", llama_server.error_body)
        for name in (
            *("completion", "infill", "tokenize", "detokenize", "apply-template"),
            *("props", "slots", "embedding", "rerank"),
        )
    ),
)


def create_handler(service: Service) -> HttpHandler:
    """All APIs of one service, ready to be given to a Server.

    Its ``/metrics`` and ``/health`` tell of the server too once ``service.server_stats`` is set.
    """
    handler = HttpHandler()
    metrics = Metrics(service)
    submission = Submission(service, metrics)
    generating = Generating(submission)
    models = openai.Models(service)
    completions = openai.Completions(service, submission)
    chat = openai.ChatCompletions(service, submission)
    responses = openai.Responses(service, submission)
    messages = anthropic.Messages(service, submission)
    embeddings = Embeddings(service, submission)
    reranking = Reranking(service, submission)
    completion = llama_server.Completion(service, submission)
    infill = llama_server.Infill(service, completion)
    text = llama_server.Text(service)
    llama = llama_server.Server(service)
    benchmarks = Benchmarks(service)

    def index(request: HttpRequest) -> HttpResponse:
        listed = [
            {"method": r.method, "path": r.path, "description": r.description} for r in routes
        ]
        return success({"name": "cLLM", "version": __version__, "endpoints": listed})

    routes = (
        Route("GET", "/", "This list", index),
        Route("GET", "/health", "State of the server; ?level=basic|detailed|full",
              partial(health, service)),
        Route("POST", "/generate", "Continue a prompt", generating.generate),
        Route("POST", "/generate_stream", "Continue a prompt, as server-sent events",
              generating.generate_stream),
        Route("POST", "/encode", "Text to tokens", partial(tokens.encode, service)),
        Route("POST", "/decode", "Tokens to text", partial(tokens.decode, service)),
        Route("POST", "/benchmark", "Measure the server with requests of its own",
              benchmarks.endpoint),
        Route("GET", "/model/info", "The model and the context in force",
              partial(model_info, service)),
        Route("POST", "/slots/{id}", "Save, restore or erase a slot's prefix: ?action=",
              SlotActions(service, handler).endpoint),
        Route("GET", "/metrics", "Figures in Prometheus text format", metrics.endpoint),
        Route("POST", "/v1/chat/completions", "OpenAI: answer a conversation", chat.endpoint),
        Route("POST", "/v1/responses", "OpenAI: the same, without a store", responses.create),
        Route("POST", "/v1/completions", "OpenAI: continue prompts", completions.endpoint),
        Route("POST", "/v1/messages", "Anthropic: answer a conversation", messages.create),
        Route("POST", "/v1/messages/count_tokens", "Anthropic: count a conversation's tokens",
              messages.count_tokens),
        Route("POST", "/v1/embeddings", "OpenAI: texts to vectors", embeddings.openai),
        Route("POST", "/embedding", "llama-server: texts to vectors", embeddings.llama_server),
        Route("POST", "/embeddings", "The same", embeddings.llama_server),
        Route("POST", "/v1/rerank", "Documents by how well they answer a query",
              reranking.endpoint),
        Route("POST", "/v1/reranking", "The same", reranking.endpoint),
        Route("POST", "/rerank", "The same", reranking.endpoint),
        Route("POST", "/reranking", "The same", reranking.endpoint),
        Route("GET", "/v1/models", "OpenAI: the model that is served", models.listed),
        Route("GET", "/v1/models/{id}", "OpenAI: the same, by its name", models.model),
        Route("POST", "/completion", "llama-server: continue prompts", completion.endpoint),
        Route("POST", "/completions", "llama-server: the same", completion.endpoint),
        Route("POST", "/infill", "llama-server: fill a gap in a text", infill.endpoint),
        Route("POST", "/tokenize", "llama-server: text to tokens", text.tokenize),
        Route("POST", "/detokenize", "llama-server: tokens to text", text.detokenize),
        Route("POST", "/apply-template", "llama-server: a conversation as a prompt",
              text.apply_template),
        Route("GET", "/props", "llama-server: what the server is set to", llama.props),
        Route("POST", "/props", "llama-server: nothing can be changed", llama.change_props),
        Route("GET", "/v1/health", "llama-server: the same as /health", partial(health, service)),
        Route("GET", "/models", "llama-server: the same as /v1/models", models.listed),
        Route("POST", "/chat/completions", "llama-server: the same as /v1/chat/completions",
              chat.endpoint),
        Route("GET", "/slots", "llama-server: what the sequences are at", llama.slots),
    )  # fmt: skip

    handler.error_body = _error_body
    if service.settings.api_keys:
        handler.add_middleware(require_key(service.settings.api_keys))
    large = LargeBodies(handler)
    for route in routes:
        # These say themselves what they think of the state, in a single look.
        endpoint = route.endpoint
        if route.path not in OPEN:
            endpoint = _guarded(service, route, large)
        family = _family(route.path)
        if family is not None and family.around is not None:
            endpoint = family.around(endpoint)
        register = handler.get if route.method == "GET" else handler.post
        register(route.path, endpoint)
    return handler


def _family(path: str) -> Family | None:
    return next((family for family in FAMILIES if path.startswith(family.prefix)), None)


def _error_body(status: int, message: str, request: HttpRequest | None) -> tuple[bytes, str]:
    """Errors wear the clothes of the API that was asked."""
    family = _family(request.path) if request is not None else None
    return (
        error_body(status, message, request)
        if family is None
        else family.error_body(status, message)
    )


def _guarded(service: Service, route: Route, large: LargeBodies) -> Endpoint:
    """Answer 503 while there is no model, and put what the engine refuses into HTTP's words."""
    endpoint, native = route.endpoint, _family(route.path) is None

    def refusing(request: HttpRequest) -> Answer:
        try:
            return endpoint(request)
        except QueueFull as error:
            if native:
                return too_many_requests()
            raise HttpError(429, str(error), (("Retry-After", str(RETRY_AFTER)),)) from None
        except EngineError as error:
            raise describe(error, request.id) from None

    def guarded(request: HttpRequest) -> Answer:
        if service.state is not State.READY:
            if native:
                return unavailable(service)
            raise service.unavailable()
        if len(request.body) > LARGE:
            return large.run(refusing, request)
        return refusing(request)

    return guarded
