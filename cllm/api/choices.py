"""How many generations one request may ask for: the choices of all its prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cllm.engine import InvalidRequest

if TYPE_CHECKING:
    from cllm.api.service import Service
    from cllm.http import HttpRequest

MOST_CHOICES = 128


def check_choices(
    service: Service, request: HttpRequest, prompts: int, each: int, name: str
) -> None:
    """Raise InvalidRequest if there are so many that no later try could succeed either.

    each: choices of each prompt, as the field `name` says.
    """
    asked = prompts * each
    if asked == 1:  # no limit is lower
        return
    stats, own = service.engine.stats(), service.tenants.of(request).share.most
    most, why = min(
        (MOST_CHOICES, "of one request"),
        (stats.slots_total + stats.queue_limit, "that may run and wait on this server"),
        (MOST_CHOICES if own is None else own, "that may run and wait with this key"),
    )
    if asked <= most:
        return
    expected = f"at most {most} choices {why}"
    if each == 1:
        raise InvalidRequest("prompt", f"{prompts} prompts", expected)
    if prompts > 1:
        expected += f", prompts times {name}"
    raise InvalidRequest(name, each, expected)
