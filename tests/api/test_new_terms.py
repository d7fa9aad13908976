"""Other terms of a key while its requests run and wait."""

from __future__ import annotations

from contextlib import ExitStack
from hashlib import sha256

import pytest

from cllm.api.tenants import Terms
from cllm.engine import Engine, SamplingParams
from tests.api.api_client import Live, begin_post, eventually
from tests.api.keyed import SHORT, ask, ring

ENDLESS = {**SHORT, "max_tokens": 100_000, "ignore_eos": True}


@pytest.mark.parametrize("removed_before", [False, True])
def test_a_higher_concurrency_applies_to_requests_that_wait(
    keyed: Live, removed_before: bool
) -> None:
    engine = keyed.engine
    keyed.service.renew_keys(ring(single=Terms(concurrent=1)))
    with ExitStack() as stack:
        for count in (1, 2, 3):
            stack.enter_context(begin_post(keyed, "/generate_stream", ENDLESS, key="single"))
            eventually(lambda n=count: _in_flight(engine) == (1, n - 1), "one runs")  # type: ignore[misc]
        if removed_before:
            keyed.service.renew_keys(ring(alice=Terms()))
        keyed.service.renew_keys(ring(single=Terms(concurrent=3)))
        eventually(lambda: _in_flight(engine) == (3, 0), "all run")


def test_a_lower_concurrency_applies_to_requests_that_wait(keyed: Live) -> None:
    engine = keyed.engine
    keyed.service.renew_keys(ring(alice=Terms(), single=Terms(concurrent=2)))
    with ExitStack() as stack:
        peers = []
        for count in (1, 2, 3):
            peers.append(
                stack.enter_context(begin_post(keyed, "/generate_stream", ENDLESS, key="single"))
            )
            eventually(lambda n=count: sum(_in_flight(engine)) == n, "it is there")  # type: ignore[misc]
        keyed.service.renew_keys(ring(alice=Terms(), single=Terms(concurrent=1)))
        peers[0].close()
        eventually(lambda: sum(_in_flight(engine)) == 2, "one has left")
        assert ask(keyed, "alice").status_code == 200  # slots are free
        assert _in_flight(engine) == (1, 1), "the other one runs, and the third waits for its end"
        peers[1].close()
        eventually(lambda: _in_flight(engine) == (1, 0), "the third runs")


def test_terms_that_came_while_a_request_was_prepared_apply_to_it(keyed: Live) -> None:
    engine, tenants = keyed.engine, keyed.service.tenants
    keyed.service.renew_keys(ring(single=Terms(concurrent=1)))
    tenant = tenants.find(sha256(b"single").digest())
    assert tenant is not None
    before = tenant.share
    keyed.service.renew_keys(ring(single=Terms(concurrent=2)))
    assert ask(keyed, "single").status_code == 200  # the engine knows of it
    endless = SamplingParams(max_tokens=100_000, ignore_eos=True)
    generations = [engine.submit("x", endless, tenant=tenant.name, share=before) for _ in range(2)]
    try:
        eventually(lambda: _in_flight(engine) == (1, 1), "one waits")
        tenant.submitted(engine, before)
        eventually(lambda: _in_flight(engine) == (2, 0), "both run")
    finally:
        for generation in generations:
            generation.cancel()


def _in_flight(engine: Engine) -> tuple[int, int]:
    """Requests that run, and that wait."""
    stats = engine.stats()
    return stats.slots_busy, stats.queue_depth
