"""Token buckets with a clock of the test's own, and the header fields that describe them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.api.rate_limits import Bucket, anthropic_fields, openai_fields, retry_fields

SIZES = st.integers(1, 10**6)
GAPS = st.floats(0, 300)
AMOUNTS = st.floats(0, 10**6)


@given(SIZES, st.lists(st.tuples(GAPS, AMOUNTS), max_size=30))
def test_no_more_is_used_than_a_bucket_and_what_flows_in(
    size: int, steps: list[tuple[float, float]]
) -> None:
    """Whatever comes when: used before the last admitted request <= size + time * rate."""
    bucket, now, used = Bucket(size, 0.0), 0.0, 0.0
    for gap, amount in steps:
        now += gap
        if bucket.wait(0, now) == 0:  # a request is admitted
            assert used <= size + now * size / 60 + 1e-6 * max(1.0, used)
            bucket.use(amount, now)
            used += amount
        assert bucket.level <= size


@given(SIZES, st.lists(st.tuples(GAPS, AMOUNTS), min_size=1, max_size=20))
def test_a_refused_request_is_admitted_when_it_was_told_to_come_back(
    size: int, steps: list[tuple[float, float]]
) -> None:
    bucket, now = Bucket(size, 0.0), 0.0
    for gap, amount in steps:
        now += gap
        bucket.use(amount, now)
    wait = bucket.wait(0, now)
    if wait > 1e-3:
        assert Bucket.wait(bucket, 0, now + wait / 2) > 0
    assert bucket.wait(0, now + wait + 1e-3) == 0


@given(SIZES, AMOUNTS, st.floats(0.001, 300), st.integers(1, 40))
def test_what_is_used_evenly_may_be_counted_in_any_number_of_parts(
    size: int, amount: float, seconds: float, parts: int
) -> None:
    at_once, in_parts = Bucket(size, 0.0), Bucket(size, 0.0)
    at_once.spread(amount, seconds)
    for part in range(1, parts + 1):
        in_parts.spread(amount / parts, seconds * part / parts)
    assert at_once.level == pytest.approx(in_parts.level, abs=1e-6 * (amount + size))


@given(SIZES, AMOUNTS, GAPS)
def test_what_is_given_back_does_not_overflow(size: int, amount: float, gap: float) -> None:
    bucket = Bucket(size, 0.0)
    bucket.use(amount, 0.0)
    bucket.spread(-amount, gap)
    assert bucket.level == pytest.approx(size)


@given(SIZES, SIZES, AMOUNTS)
def test_another_allowance_keeps_what_was_used(size: int, other: int, amount: float) -> None:
    bucket = Bucket(size, 0.0)
    bucket.use(amount, 0.0)
    bucket.resize(other, 0.0)
    assert bucket.size - bucket.level == pytest.approx(amount, abs=1e-6)


def test_time_that_goes_back_changes_nothing() -> None:
    bucket = Bucket(60, 100.0)
    bucket.use(30, 100.0)
    assert bucket.wait(31, 50.0) == 1.0
    assert bucket.wait(31, 101.0) == 0.0


def test_fields_in_the_form_of_each_api() -> None:
    bucket = Bucket(60, 0.0)
    bucket.use(90.5, 0.0)
    assert dict(openai_fields("requests", bucket)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m31s",
    }
    clock = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert dict(anthropic_fields("tokens", bucket, clock)) == {
        "anthropic-ratelimit-tokens-limit": "60",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2026-01-02T03:05:35Z",
    }


@pytest.mark.parametrize(
    ("used", "expected"),
    [(0, "0ms"), (0.5, "500ms"), (1.5, "1.5s"), (59, "59s"), (60, "1m0s"), (361, "6m1s")],
)
def test_a_duration_is_written_as_openai_writes_it(used: float, expected: str) -> None:
    bucket = Bucket(60, 0.0)
    bucket.use(used, 0.0)
    assert openai_fields("tokens", bucket)[2][1] == expected


@pytest.mark.parametrize(
    ("seconds", "fields"), [(0.0, ("1", "1")), (0.25, ("1", "250")), (61.001, ("62", "61001"))]
)
def test_a_client_is_told_when_to_come_back(seconds: float, fields: tuple[str, str]) -> None:
    assert tuple(value for _, value in retry_fields(seconds)) == fields
