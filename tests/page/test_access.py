"""The page for everyone: keys, keyboard, narrow screens, both themes, both languages, a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from cllm.api import ApiSettings
from cllm.engine import Engine
from scripts.bench.clients.browser import Received
from tests.api.api_client import eventually
from tests.page.conftest import Faults, Site, serving
from tests.page.test_chat import DONE, SHORT, send, stored

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

VIEWS = ("chat", "inspector", "monitor", "bench")


@pytest.fixture(scope="module")
def keyed(engine: Engine) -> Iterator[Site]:
    with serving(engine, ApiSettings(api_keys=("secret",))) as site:
        site.fields = dict(SHORT)
        yield site


def test_the_page_asks_for_a_key_again_if_it_is_wrong(
    keyed: Site, new_tab: Callable[..., Tab], faults: Faults
) -> None:
    faults.expected = ("401",)
    tab = new_tab()
    tab.goto(keyed.url)
    tab.wait_for_selector("dialog.key >> text=requires an API key")
    tab.keyboard.type("wrong")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("dialog.key [role=alert] >> text=not valid")
    tab.keyboard.type("secret")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#model:text('cllm-stories')")
    send(tab, "Hello")
    tab.wait_for_selector(DONE)
    faults.expected = ()
    tab.reload()  # the tab keeps the key
    tab.wait_for_selector(DONE)
    tab.wait_for_selector("#model:text('cllm-stories')")
    assert tab.locator("dialog").count() == 0
    assert "secret" not in str(tab.evaluate("JSON.stringify(localStorage)"))
    assert "secret" not in str(stored(tab))


def test_without_a_key_the_page_says_what_is_missing(
    keyed: Site, new_tab: Callable[..., Tab], faults: Faults
) -> None:
    faults.expected = ("401",)
    tab = new_tab()
    tab.goto(keyed.url)
    tab.wait_for_selector("dialog.key")
    tab.keyboard.press("Escape")
    tab.wait_for_selector(".notice.error >> text=API key")


def tabbed_to(tab: Tab, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(60):
        if tab.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        tab.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {selector}")


def writing(tab: Tab) -> None:
    eventually(lambda: tab.evaluate("document.activeElement.id") == "prompt", "one can write")


def test_everything_is_reached_by_keyboard(tab: Tab, site: Site) -> None:
    site.fields = dict(SHORT)
    writing(tab)
    tab.keyboard.type("Hello")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("there")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(DONE)
    assert tab.inner_text(".message.user .text") == "Hello\nthere"
    tabbed_to(tab, ".regenerate")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".branches >> text=2/2")
    tab.wait_for_selector(DONE)
    tabbed_to(tab, "[aria-label='Earlier branch']")
    tab.keyboard.press("Space")
    tab.wait_for_selector(".branches >> text=1/2")
    tabbed_to(tab, "#settings")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("dialog.settings")
    tab.keyboard.press("Escape")
    eventually(lambda: tab.locator("dialog").count() == 0, "Escape closes the dialog")
    tab.keyboard.press("Control+Shift+O")
    tab.wait_for_selector(".empty")
    writing(tab)
    tabbed_to(tab, "#bar nav a[href='#/bench']")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".root.bench")


UNNAMED = """() => [...document.querySelectorAll("button, input, textarea, a, [tabindex='0']")]
    .filter((each) => each.checkVisibility() && !each.ariaLabel && !each.labels?.length
        && !each.textContent.trim() && !each.title)
    .map((each) => each.outerHTML)"""
WIDE = """() => [...document.querySelectorAll("body *")].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.width > 0 && box.right > innerWidth + 1 && !each.closest(".scrolls, pre, .table");
}).map((each) => each.outerHTML.slice(0, 200))"""
# Contrast of text with what is behind it (WCAG 2.1, 1.4.3: at least 4.5).
PALE = """() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => parts(color).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (each) => {
        for (; each; each = each.parentElement) {
            const color = getComputedStyle(each).backgroundColor;
            if ((parts(color)[3] ?? 1) > 0.99) return color;
        }
        return "rgb(255, 255, 255)";
    };
    const found = [];
    for (const each of document.querySelectorAll("body *")) {
        const text = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!text || !each.checkVisibility() || each.disabled) continue;
        if (each.matches(".hidden, noscript")) continue;
        const [a, b] = [light(getComputedStyle(each).color), light(behind(each))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found.push(`${ratio.toFixed(1)} ${each.outerHTML.slice(0, 120)}`);
    }
    return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_views_fit_and_are_legible(
    site: Site, new_tab: Callable[..., Tab], width: int, theme: Any
) -> None:
    site.fields = dict(SHORT)
    tab = new_tab(viewport={"width": width, "height": 640}, color_scheme=theme)
    tab.goto(site.url)
    send(tab, "Hello")
    tab.wait_for_selector(DONE)
    for view in VIEWS:
        tab.goto(f"{site.url}#/{view}")
        tab.wait_for_selector(f".root.{view} :is(#send, #run, #bench-run, .sections, svg, table)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(WIDE) == []
        assert tab.evaluate(PALE) == []
        assert tab.evaluate(UNNAMED) == []


def test_a_first_visit_transfers_little(site: Site, new_tab: Callable[..., Tab]) -> None:
    """Until the end of the first answer."""
    site.fields = dict(SHORT)
    tab = new_tab()
    received = Received(tab)
    tab.goto(site.url)
    send(tab, "Hello")
    tab.wait_for_selector(DONE)
    assert received.responses > 20
    assert received.bytes < 120_000


def test_the_theme_is_turned_and_kept(tab: Tab) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(back)
    tab.click("#theme")
    dark = tab.evaluate(back)
    assert light != dark
    tab.reload()
    tab.wait_for_selector("#prompt")
    assert tab.evaluate(back) == dark


def test_chinese(site: Site, new_tab: Callable[..., Tab]) -> None:
    tab = new_tab(locale="zh-CN")
    tab.goto(site.url)
    tab.wait_for_selector("#send:text('发送')")
    assert tab.get_attribute("html", "lang") == "zh"
    tab.click("#language")
    tab.wait_for_selector("#send:text('Send')")


def test_both_languages_have_the_same_texts(tab: Tab) -> None:
    version = tab.evaluate("document.querySelector('script').src").rsplit("/", 1)[0]
    missing = tab.evaluate(
        """async (version) => {
            const chat = (await import(`${version}/chat/texts.js`)).texts;
            const { en } = await import(`${version}/texts_en.js`);
            const { zh } = await import(`${version}/texts_zh.js`);
            const all = [[en, zh], [chat.en, chat.zh]];
            for (const view of ["inspector", "monitor", "bench"]) {
                const { texts } = await import(`${version}/${view}/texts.js`);
                all.push([texts.en, texts.zh]);
            }
            return all.flatMap(([en, zh]) => [...Object.keys(en).filter((key) => !(key in zh)),
                ...Object.keys(zh).filter((key) => !(key in en))]);
        }""",
        version,
    )
    assert missing == []


def test_the_page_works_below_a_prefix(engine: Engine, new_tab: Callable[..., Tab]) -> None:
    with serving(engine, prefix="/models/one") as site:
        site.fields = dict(SHORT)
        tab = new_tab()
        tab.goto(site.url + "models/one/")
        tab.wait_for_selector("#prompt")
        send(tab, "Hello")
        tab.wait_for_selector(DONE)
        assert tab.inner_text("#model") == "cllm-stories-q8_0"
