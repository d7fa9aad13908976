"""The monitor in a browser: what it shows while 64 requests run, and how it explains them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from cllm.engine import Engine, Generation, SamplingParams
from cllm.models import demo_path
from tests.api.api_client import eventually, idle
from tests.page.conftest import Site, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

ENDLESS = SamplingParams(ignore_eos=True, temperature=0)
STREAMS = 64


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        Engine.load(demo_path(), parallel=STREAMS, ctx_size=512) as engine,
        serving(engine) as site,
    ):
        yield site


@pytest.fixture
def running(site: Site) -> Iterator[list[Generation]]:
    """As many requests as slots, and two that wait."""
    asked = [
        site.engine.submit("Once upon a time there was a fox.", ENDLESS, tenant="fox")
        for _ in range(STREAMS + 2)
    ]
    yield asked
    for request in asked:
        request.cancel()
    eventually(lambda: idle(site.engine), "all requests have ended")


def opened(tab: Tab, site: Site) -> Tab:
    tab.goto(f"{site.url}#/monitor")
    tab.wait_for_selector(".slots li")
    return tab


def test_it_shows_every_slot_and_the_queue(
    site: Site, new_tab: Callable[..., Tab], running: list[Generation]
) -> None:
    tab = opened(new_tab(), site)
    tab.locator(".slots .generating").nth(STREAMS - 1).wait_for()
    assert "64 of 64 slots are busy, 2 requests wait" in tab.inner_text("[role=status]")
    assert "fox: 2 wait" in tab.inner_text("[aria-label=Queue]")
    assert tab.locator(".minute svg[role=img]").count() == 3
    label = tab.locator(".minute svg").first.get_attribute("aria-label") or ""
    assert label.startswith("Generated tokens per second: ")
    # One group for each of the last steps, of several parts.
    assert tab.locator(".steps svg g").count() > 0


def test_a_running_request_is_explained_until_it_ends(
    site: Site, new_tab: Callable[..., Tab], running: list[Generation]
) -> None:
    tab = opened(new_tab(), site)
    tab.locator(".slots .generating button").first.click()
    dialog = tab.locator("dialog.explanation")
    text = dialog.inner_text()
    assert "It still runs." in text and "Writing" in text and "prompt" in text
    for request in running:
        request.cancel()
    dialog.get_by_text("It was cancelled").wait_for()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()
    tab.wait_for_selector(".recent li")


def test_a_recent_request_is_explained(site: Site, new_tab: Callable[..., Tab]) -> None:
    done = site.engine.generate("The little fox", max_tokens=20, ignore_eos=True)
    tab = opened(new_tab(), site)
    tab.click(f".recent [title='Explain request {done.id[:8]}']")
    text = tab.inner_text("dialog.explanation")
    assert "Writing 20 tokens took" in text and "It ended at its limit of tokens." in text


def test_it_fits_a_phone_and_speaks_chinese(
    site: Site, new_tab: Callable[..., Tab], running: list[Generation]
) -> None:
    size = {"width": 360, "height": 640}
    tab = opened(new_tab(locale="zh-CN", viewport=size, color_scheme="dark"), site)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert tab.evaluate("document.getElementById('view').scrollWidth") <= 360
    assert "槽位" in tab.inner_text(".slots")


def test_the_server_makes_nothing_for_a_view_that_was_left(
    site: Site, new_tab: Callable[..., Tab]
) -> None:
    tab = opened(new_tab(), site)
    before = site.server.stats().clients_left_total
    tab.goto(f"{site.url}#/bench")
    tab.wait_for_selector(".root.bench")
    eventually(lambda: site.server.stats().clients_left_total > before, "the stream has ended")


def test_every_text_has_both_languages(site: Site, new_tab: Callable[..., Tab]) -> None:
    tab = opened(new_tab(), site)
    source = tab.evaluate(
        """async () => {
          const module = performance.getEntriesByType("resource")
            .find(({name}) => name.endsWith("monitor/texts.js")).name;
          const {texts} = await import(module);
          return [Object.keys(texts.en), Object.keys(texts.zh)];
        }"""
    )
    assert source[0] == source[1] and len(source[0]) > 50
