"""From a checked request to its generations, and from these to an answer, whole or streamed.

No worker waits for a token: the handler submits and returns, and the engine's last update resolves
the response.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

from cllm.api.errors import describe
from cllm.api.lanes import WAITING_SINCE
from cllm.api.llama_fields import lora_of
from cllm.api.metrics import Metrics
from cllm.api.service import Service
from cllm.api.sharing_fields import SharingFields
from cllm.api.stream import Frames, GenerationStream
from cllm.api.tenants import Tenant, scope_of, tenant_of
from cllm.engine import DeadlineExceeded, InvalidRequest
from cllm.http import DeferredResponse, HttpError, HttpRequest, HttpResponse
from cllm.http.sse import EVENT_STREAM

if TYPE_CHECKING:
    from cllm.engine import Embedding, Generation, Request, SamplingParams

_UNSTORED = (("Cache-Control", "no-store"),)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One generation to submit: a prompt, as text or tokens, and its sampling parameters.

    slot: the only slot it may run in. fresh: reuse no cached prefix.
    """

    prompt: str | list[int]
    params: SamplingParams
    slot: int | None = None
    fresh: bool = False


class Submission:
    """Submits requests to the engine."""

    __slots__ = ("_metrics", "_service")

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    def whole(
        self,
        request: HttpRequest,
        asked: SharingFields,
        wanted: Sequence[Wanted],
        respond: Callable[[Sequence[Generation]], HttpResponse],
        refuse: Callable[[HttpError], HttpResponse],
    ) -> DeferredResponse:
        """Respond once all have ended, with what `respond` makes of them, or `refuse` of an error.

        Raises HttpError 503, InvalidRequest, QueueFull; nothing stays queued then.
        """
        answer: _Whole[Generation] = _Whole(request.id, respond, refuse, self._metrics)
        answer.bind(self._submit(request, asked, wanted, answer.on_update))
        return answer.deferred

    def answer(
        self,
        request: HttpRequest,
        asked: SharingFields,
        wanted: Sequence[Wanted],
        *,
        stream: bool | None,
        frames: Callable[[Sequence[Generation]], Frames],
        respond: Callable[[Sequence[Generation]], HttpResponse],
        refuse: Callable[[HttpError], HttpResponse],
        content_type: str = EVENT_STREAM,
    ) -> HttpResponse | DeferredResponse:
        """As `streamed` if `stream` is true, else as `whole`."""
        if stream:
            return self.streamed(request, asked, wanted, frames, content_type)
        return self.whole(request, asked, wanted, respond, refuse)

    def embedded(
        self,
        request: HttpRequest,
        asked: SharingFields,
        inputs: Sequence[Sequence[int]],
        name: str,
        respond: Callable[[Embedding], HttpResponse],
        refuse: Callable[[HttpError], HttpResponse],
    ) -> DeferredResponse:
        """Respond once the inputs, those of the field `name`, are computed; raises as `whole`."""
        answer: _Whole[Embedding] = _Whole(
            request.id, lambda ended: respond(ended[0]), refuse, self._metrics
        )
        engine, tenant = self._service.engine, self._service.tenants.of(request)
        tenant.check_tokens()
        share = tenant.share
        embedding = engine.embedder.submit(
            inputs,
            name=name,
            deadline=self._deadline(request),
            on_update=answer.on_update,
            tenant=tenant_of(request),
            share=share,
            priority=_priority(asked, tenant),
            meter=tenant,
        )
        tenant.submitted(engine, share)
        answer.bind([embedding])
        return answer.deferred

    def streamed(
        self,
        request: HttpRequest,
        asked: SharingFields,
        wanted: Sequence[Wanted],
        frames: Callable[[Sequence[Generation]], Frames],
        content_type: str = EVENT_STREAM,
    ) -> HttpResponse:
        """Respond with events as the tokens come; raises as `whole`."""
        submit = partial(self._submit, request, asked, wanted)
        stream = GenerationStream(request.id, submit, frames, self._metrics.finished)
        return HttpResponse.stream(stream, content_type, headers=_UNSTORED)

    def _submit(
        self,
        request: HttpRequest,
        asked: SharingFields,
        wanted: Sequence[Wanted],
        on_update: Callable[[], None],
    ) -> Sequence[Generation]:
        service, deadline = self._service, self._deadline(request)
        engine, tenant, name = service.engine, service.tenants.of(request), tenant_of(request)
        share, priority = tenant.share, _priority(asked, tenant)
        tenant.check_tokens()  # it may have waited, and others came before
        scope = scope_of(request, service.divides_prefixes, asked.cache_salt)
        lora = lora_of(asked)
        generations: list[Generation] = []
        try:
            for each in wanted:
                generations.append(
                    engine.submit(
                        each.prompt,
                        each.params,
                        deadline=deadline,
                        on_update=on_update,
                        slot=each.slot,
                        fresh=each.fresh,
                        tenant=name,
                        share=share,
                        priority=priority,
                        scope=scope,
                        lora=lora,
                        meter=tenant,
                    )
                )
        except BaseException:
            for generation in generations:
                generation.cancel()
            raise
        tenant.submitted(engine, share)
        return generations

    def _deadline(self, request: HttpRequest) -> float:
        """Seconds that are left of the request's time. Raises DeadlineExceeded."""
        timeout = self._service.settings.request_timeout
        since = request.context.get(WAITING_SINCE)
        left = timeout if since is None else timeout - (monotonic() - since)
        if left <= 0:
            raise DeadlineExceeded(timeout)
        return left


def _priority(asked: SharingFields, tenant: Tenant) -> int:
    priority, terms = asked.priority, tenant.terms
    if priority is None:
        return terms.usual_priority
    if priority < (most_urgent := terms.priority):
        expected = f"an integer of {most_urgent} or more, which is the most urgent allowed here"
        raise InvalidRequest("priority", priority, expected)
    return priority


R = TypeVar("R", bound="Request")


class _Whole(Generic[R]):
    """Resolves a deferred response once all that was submitted for it has ended."""

    __slots__ = (
        "_claim",
        "_metrics",
        "_refuse",
        "_request_id",
        "_respond",
        "_submitted",
        "deferred",
    )

    def __init__(
        self,
        request_id: str,
        respond: Callable[[Sequence[R]], HttpResponse],
        refuse: Callable[[HttpError], HttpResponse],
        metrics: Metrics,
    ) -> None:
        self._claim = threading.Lock()  # held once a thread makes the response
        self.deferred = DeferredResponse()
        self._submitted: Sequence[R] = ()
        self._request_id = request_id
        self._respond = respond
        self._refuse = refuse
        self._metrics = metrics

    def bind(self, submitted: Sequence[R]) -> None:
        self._submitted = submitted
        self.deferred.on_cancel(self._cancel)
        # They may have ended before they were bound.
        self.on_update()

    def on_update(self) -> None:
        """On a thread of the engine after a step."""
        submitted = self._submitted
        if not submitted or self.deferred.cancelled:
            return
        if any(each.error is not None for each in submitted):
            self._cancel("another part of the answer failed")
        if not all(each.done for each in submitted) or not self._claim.acquire(blocking=False):
            return
        try:
            response = self._response(submitted)
        except Exception as error:
            # On any error, the client must not wait for ever.
            fault = error if isinstance(error, HttpError) else describe(error, self._request_id)
            response = self._refuse(fault)
        if self.deferred.resolve(response):
            for each in submitted:
                self._metrics.finished(each)

    def _response(self, submitted: Sequence[R]) -> HttpResponse:
        for each in submitted:
            if each.error is not None:
                raise each.error
        if any(each.finish_reason == "cancelled" for each in submitted):
            raise HttpError(503, "the generation was cancelled")
        return self._respond(submitted)

    def _cancel(self, reason: str) -> None:
        for each in self._submitted:
            each.cancel()
