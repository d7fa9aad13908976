"""From a checked request to its generations, and from these to an answer, whole or streamed.

No worker waits for a token: the handler submits and returns, and the engine's last update resolves
the response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from cllm.api.errors import describe
from cllm.api.metrics import Metrics
from cllm.api.service import Service
from cllm.api.stream import Frames, GenerationStream
from cllm.api.tenants import tenant_of
from cllm.http import DeferredResponse, HttpError, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Embedding, Generation, Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Wanted:
    """One generation to submit: a prompt, as text or tokens, and its sampling parameters.

    slot: the required slot of the engine. fresh: reuse no prefix of earlier prompts.
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
        wanted: Sequence[Wanted],
        respond: Callable[[Sequence[Generation]], HttpResponse],
        refuse: Callable[[HttpError], HttpResponse],
    ) -> DeferredResponse:
        """Answer once all have ended: with `respond` of them, or `refuse` of an error.

        Raises HttpError 503, InvalidRequest, QueueFull; nothing stays queued then.
        """
        answer: _Whole[Generation] = _Whole(request.id, respond, refuse, self._metrics)
        answer.bind(self._submit(request, wanted, answer.on_update))
        return answer.deferred

    def embedded(
        self,
        request: HttpRequest,
        inputs: Sequence[Sequence[int]],
        name: str,
        respond: Callable[[Embedding], HttpResponse],
        refuse: Callable[[HttpError], HttpResponse],
    ) -> DeferredResponse:
        """Answer once the inputs, from the field `name`, are computed; raises as `whole`."""
        answer: _Whole[Embedding] = _Whole(
            request.id, lambda ended: respond(ended[0]), refuse, self._metrics
        )
        embedding = self._service.engine.embedder.submit(
            inputs,
            name=name,
            deadline=self._service.settings.request_timeout,
            on_update=answer.on_update,
            tenant=tenant_of(request),
        )
        answer.bind([embedding])
        return answer.deferred

    def streamed(
        self,
        request: HttpRequest,
        wanted: Sequence[Wanted],
        frames: Callable[[Sequence[Generation]], Frames],
    ) -> HttpResponse:
        """Answer with events as tokens are generated; raises as `whole`."""
        stream = GenerationStream(request.id, self._metrics.finished)
        generations = self._submit(request, wanted, stream.on_update)
        stream.bind(generations, frames(generations))
        return HttpResponse.sse(stream)

    def _submit(
        self, request: HttpRequest, wanted: Sequence[Wanted], on_update: Callable[[], None]
    ) -> Sequence[Generation]:
        engine, deadline = self._service.engine, self._service.settings.request_timeout
        tenant = tenant_of(request)
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
                        tenant=tenant,
                    )
                )
        except BaseException:
            for generation in generations:
                generation.cancel()
            raise
        return generations


R = TypeVar("R", bound="Request")


class _Whole(Generic[R]):
    """Resolves a deferred response when its submitted requests are done."""

    __slots__ = ("_metrics", "_refuse", "_request_id", "_respond", "_submitted", "deferred")

    def __init__(
        self,
        request_id: str,
        respond: Callable[[Sequence[R]], HttpResponse],
        refuse: Callable[[HttpError], HttpResponse],
        metrics: Metrics,
    ) -> None:
        self.deferred = DeferredResponse()
        self._submitted: Sequence[R] = ()
        self._request_id = request_id
        self._respond = respond
        self._refuse = refuse
        self._metrics = metrics

    def bind(self, submitted: Sequence[R]) -> None:
        self._submitted = submitted
        self.deferred.on_cancel(self._cancel)
        # They may have ended before this call.
        self.on_update()

    def on_update(self) -> None:
        """On the engine thread after a step."""
        submitted = self._submitted
        if not submitted or self.deferred.cancelled:
            return
        if any(each.error is not None for each in submitted):
            self._cancel("another part of the answer failed")
        if not all(each.done for each in submitted):
            return
        try:
            response = self._response(submitted)
        except Exception as error:
            # Any error: the client must not wait forever.
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
