"""Counts requests against the limits of their tenants."""

from __future__ import annotations

from collections.abc import Collection

from cllm.api.tenants import Tenants, is_anthropic
from cllm.http import DeferredResponse, HttpRequest, HttpResponse
from cllm.http.handler import Answer, Middleware, Next


def metered(tenants: Tenants, uncounted: Collection[str] = ()) -> Middleware:
    """Counts POST requests against the limits of their tenants, and tells what is left of them.

    uncounted: paths that limits do not apply to.
    """

    def count(request: HttpRequest, next: Next) -> Answer:
        if request.path in uncounted:
            return next(request)
        tenant = tenants.of(request)
        if not tenant.limited:
            if request.method == "POST":
                tenant.take()
            return next(request)
        anthropic = is_anthropic(request)
        if request.method == "POST":
            tenant.take(anthropic)
        answer = next(request)

        def add(response: HttpResponse) -> HttpResponse:
            response.headers += tenant.fields(anthropic)
            return response

        return answer.then(add) if isinstance(answer, DeferredResponse) else add(answer)

    return count
