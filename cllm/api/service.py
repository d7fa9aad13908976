"""What the endpoints share: the engine once it is loaded, the server's counters, the settings."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cllm.api.chat.chat_template import CHATML, ChatTemplate, TemplateError
from cllm.api.chat.dialect import dialect_of
from cllm.api.rate_limits import Field, retry_fields
from cllm.api.tenants import KeyRing, Tenants
from cllm.http import HttpError

if TYPE_CHECKING:
    # For types only: the port listens before llama.cpp is loaded.
    from cllm.api.idling import Idling
    from cllm.engine import Engine
    from cllm.engine.unloaded import Unloaded
    from cllm.http.stats import ServerStats

log = logging.getLogger("cllm.api")

RETRY_AFTER = 5  # seconds after which a client should retry, where nothing tells how long it takes


class State(enum.Enum):
    """Whether the model can serve requests; the values are ``/health``'s ``status``."""

    LOADING = "loading"
    READY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The operator's settings of the endpoints."""

    request_timeout: float = 600.0  # seconds a generation may take, waiting included
    body_memory: int = 256 * 2**20  # bytes of the bodies of requests that wait on lanes
    response_memory: int = 64 * 2**20  # bytes of the stored responses; 0: none is stored
    expose_model_path: bool = False
    chat_template: str | None = None  # in place of the model's own
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # below a request's
    reasoning: bool | None = None  # think first where a request does not say; None: the template's
    reasoning_budget: int = -1  # tokens of thoughts where a request does not say; -1: any number
    shows_thoughts: bool = False  # in the text, where a request does not say
    sampling: Mapping[str, Any] = field(default_factory=dict)  # in the names of SamplingParams
    alias: tuple[str, ...] = ()  # in place of the file's name
    tags: tuple[str, ...] = ()
    metrics: bool = True
    slots: bool = True
    page: bool = False  # the handler also serves a page for browsers
    verbose: bool = False  # answers of chats show their prompts
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    key_ring: KeyRing | None = None  # with neither this nor api_keys no key is required
    share_prefixes: str | None = None  # "all", "tenant"; None: "tenant" with a key ring

    def __post_init__(self) -> None:
        if not self.request_timeout > 0:
            raise ValueError(f"request_timeout is {self.request_timeout}; give seconds above 0")
        if self.share_prefixes not in (None, "all", "tenant"):
            raise ValueError(f"share_prefixes is {self.share_prefixes!r}; give all or tenant")
        if self.chat_template is not None:
            ChatTemplate(self.chat_template)  # raises TemplateError, a ValueError


class Service:
    """One model behind one handler.

    idling: unloads the model while the service is idle, if it is to be unloaded. resting: what is
    known of the model while it is unloaded; the service is READY meanwhile.

    It starts as LOADING, so that the port can listen before the model is loaded; the loader
    reports ``loading_progress(fraction)`` and then ``ready(engine)`` or ``failed(reason)``.
    Any thread may call these. The engine stays the caller's: the service never closes it.
    """

    def __init__(self, engine: Engine | None = None, settings: ApiSettings | None = None) -> None:
        self.settings = settings or ApiSettings()
        self.tenants = Tenants(self.settings.api_keys, self.settings.key_ring)
        share = self.settings.share_prefixes or ("tenant" if self.tenants.isolated else "all")
        self.divides_prefixes = share == "tenant"
        self.server_stats: Callable[[], ServerStats] | None = None
        self.idling: Idling | None = None
        self.resting: Unloaded | None = None
        self.started = time.monotonic()
        self.started_at = time.time()
        self.progress = 0.0  # of the load, 0 … 1
        self.reason = "the model is still loading"
        self._state = State.LOADING
        self._engine: Engine | None = None
        self._chat_template: ChatTemplate | TemplateError | None = None
        self._tool_template: ChatTemplate | None = None
        if engine is not None:
            self.ready(engine)

    @property
    def state(self) -> State:
        """LOADING, READY or UNHEALTHY, as of now: an engine that has stopped is noticed here."""
        engine = self._engine
        stopped = engine is not None and self._state is State.READY and not engine.healthy
        if stopped and engine is self._engine:  # else it was closed, as its model is unloaded
            self.failed("the engine has stopped")
        return self._state

    @property
    def uptime(self) -> float:
        """Seconds since this service was created."""
        return time.monotonic() - self.started

    @property
    def engine(self) -> Engine:
        """The engine; raises HttpError 503 while no engine is ready."""
        engine = self._engine
        if engine is None or self._state is not State.READY:
            raise self.unavailable()
        return engine

    @property
    def known(self) -> Engine | Unloaded:
        """The engine, or what is known of it while its model is unloaded; raises HttpError 503."""
        try:
            return self.resting or self.engine
        except HttpError:
            resting = self.resting  # The model may have been unloaded since.
            if resting is None:
                raise
            return resting

    def unavailable(self) -> HttpError:
        """503 with the reason why no engine is ready."""
        return HttpError(503, self.reason, self.retry_fields())

    def retry_fields(self) -> tuple[Field, ...]:
        """When a request that gets 503 should come again: once the model is read, at this pace."""
        seconds = float(RETRY_AFTER)
        if self._state is State.LOADING and self.progress:
            seconds = min(60.0, self.uptime * (1 - self.progress) / self.progress)
        return retry_fields(seconds)

    @property
    def model_id(self) -> str:
        """The name under which the model is served; raises HttpError 503."""
        names = self.settings.alias
        return names[0] if names else self.known.info().path.stem

    @property
    def chat_template(self) -> ChatTemplate:
        """How messages become a prompt; raises HttpError 400 if the model's own is broken."""
        if isinstance(self._chat_template, TemplateError):
            raise HttpError(
                400, f"messages: {self._chat_template}; start with --chat-template-file"
            )
        assert self._chat_template is not None
        return self._chat_template

    def template_for(self, tools: bool) -> ChatTemplate:
        """The template of a chat with or without tools: some models have one for tools."""
        if tools and self._tool_template is not None:
            return self._tool_template
        return self.chat_template

    def renew_keys(self, ring: KeyRing) -> None:
        """Another content of the file of keys, which requests that wait heed too."""
        changed = self.tenants.renew(ring)
        engine = self._engine
        if engine is not None:
            for tenant in changed:
                tenant.tell(engine)

    def loading_progress(self, fraction: float) -> None:
        """How much of the model has been read, 0 … 1; shown by ``/health``."""
        self.progress = fraction

    def ready(self, engine: Engine) -> None:
        """Let requests reach this engine from now on."""
        info = engine.info()
        for_tools = info.metadata.get("tokenizer.chat_template.tool_use")
        if isinstance(for_tools, str) and self.settings.chat_template is None:
            made = _template(engine, for_tools)
            self._tool_template = made if isinstance(made, ChatTemplate) else None
        source = self.settings.chat_template or info.chat_template or CHATML
        self._chat_template = _template(engine, source)
        self._engine, self.resting = engine, None
        self.progress = 1.0
        self._state = State.READY

    def rest(self) -> Unloaded:
        """Answer without the engine, which is closed after this, until another one is ready.

        It may have failed; then requests get 503 until another one is ready.
        """
        engine = self._engine
        if engine is None:
            raise self.unavailable()
        self.resting = known = engine.at_rest()
        self._engine = None
        return known

    def failed(self, reason: str) -> None:
        """Answer every request with 503 and this reason from now on."""
        self.reason = reason
        self._state = State.UNHEALTHY


def _template(engine: Engine, source: str) -> ChatTemplate | TemplateError:
    """The compiled template; what it cannot do is logged."""
    info = engine.info()
    try:
        template = ChatTemplate(source, info.bos_text, info.eos_text, engine.control_texts())
    except TemplateError as error:
        log.warning("%s; chat requests are refused; give --chat-template-file", error)
        return error
    for warning in dialect_of(template).warnings():
        log.warning("%s", warning)
    return template
