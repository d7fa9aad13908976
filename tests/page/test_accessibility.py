"""axe-core finds no fault in any view, in both themes, on a phone and on a screen."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.page.conftest import Site
from tests.page.test_chat import DONE, SHORT, send
from tests.tools.fetch_node import AXE, REMEDY, folder_of

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

RUN = """async () => (await axe.run()).violations.flatMap(({id, nodes}) =>
    nodes.map(({html, failureSummary}) => `${id}: ${html.slice(0, 200)} ${failureSummary}`))"""


@pytest.fixture(scope="module")
def source() -> str:
    """The script of axe-core."""
    file = folder_of(AXE) / "node_modules" / "axe-core" / "axe.min.js"
    if not file.is_file():
        pytest.skip(f"axe-core is not installed; {REMEDY}")
    return file.read_text(encoding="utf-8")


def faults_of(tab: Tab, source: str) -> list[str]:
    if not tab.evaluate("'axe' in window"):
        tab.evaluate(source)
    found: list[str] = tab.evaluate(RUN)
    return found


def shown_chat(tab: Tab, site: Site) -> None:
    tab.goto(site.url)
    send(tab, "Hello")
    tab.wait_for_selector(DONE)
    tab.click(DONE)
    tab.wait_for_selector(".branches >> text=2/2")
    tab.wait_for_selector(DONE)


def shown_settings(tab: Tab, site: Site) -> None:
    shown_chat(tab, site)
    tab.click("#settings")
    tab.wait_for_selector("dialog.settings")


def shown_form(tab: Tab, site: Site) -> None:
    """An answer with a form, reasoning and a call, and the list of conversations."""
    answer = {
        "role": "assistant", "state": "done", "form": True, "reasoning": "First",
        "content": '{"name": "x", "yes": true, "list": [{"a": null}], "text": "%s"}' % ("y " * 40),
        "toolCalls": [{"id": "1", "name": "f", "arguments": "{}"}],
    }  # fmt: skip
    text = (
        "# A\n\n## B\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```py\ndef f(): 'x' # y\n```\n\n$$x^2$$"
    )
    messages = [
        {"id": "1", "role": "user", "content": "?", "files": [{"name": "a.txt", "text": "a"}]},
        {"id": "2", "parent": "1", "role": "assistant", "content": text, "state": "done"},
        {"id": "3", "parent": "2", **answer},
    ]
    import_file(tab, site, {"title": "Form", "leaf": "3", "messages": messages})
    tab.wait_for_selector("math")
    tab.wait_for_selector(".form")


def shown_inspector(tab: Tab, site: Site) -> None:
    tab.goto(f"{site.url}#/inspector")
    tab.fill("#question", "Hello")
    tab.fill("#most", "8")
    tab.click("#run")
    tab.wait_for_selector("[aria-label=Answer][aria-busy=false]")
    tab.hover("[aria-label=Answer] .token >> nth=3")
    tab.fill("#tokenize", "Some text")
    tab.wait_for_selector(".count >> text=tokens")
    tab.click("#apply")
    tab.wait_for_selector(".rendered .token")


def shown_monitor(tab: Tab, site: Site) -> None:
    site.engine.generate("The fox", max_tokens=8, ignore_eos=True)
    tab.goto(f"{site.url}#/monitor")
    tab.wait_for_selector(".recent li")
    tab.wait_for_selector(".minute svg")


def shown_explanation(tab: Tab, site: Site) -> None:
    shown_monitor(tab, site)
    tab.click(".recent button >> nth=0")
    tab.wait_for_selector("dialog.explanation")


def shown_bench(tab: Tab, site: Site) -> None:
    tab.goto(f"{site.url}#/bench")
    tab.fill("#bench-requests", "2")
    tab.fill("#bench-max_tokens", "4")
    tab.click("#bench-run")
    tab.wait_for_selector("[role=status] >> text=Done.")


def import_file(tab: Tab, site: Site, conversation: dict[str, Any]) -> None:
    """Open a conversation that comes as a file."""
    tab.goto(site.url)
    tab.wait_for_selector("#prompt")
    menu = tab.locator("#menu")
    if menu.is_visible():
        menu.click()
    with tab.expect_file_chooser() as chooser:
        tab.click("#import")
    file = {"format": "cllm-conversations", "version": 1, "conversations": [conversation]}
    chooser.value.set_files(
        {"name": "t.json", "mimeType": "application/json", "buffer": json.dumps(file).encode()}
    )


STATES = (
    shown_chat, shown_settings, shown_form, shown_inspector, shown_monitor, shown_explanation,
    shown_bench,
)  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_no_view_has_a_fault(
    site: Site, new_tab: Callable[..., Tab], source: str, width: int, theme: Any
) -> None:
    site.fields = dict(SHORT)
    found = {}
    for show in STATES:
        tab = new_tab(viewport={"width": width, "height": 640}, color_scheme=theme)
        show(tab, site)
        found[show.__name__] = faults_of(tab, source)
        tab.context.close()
    assert found == {show.__name__: [] for show in STATES}


def test_a_fault_is_found(tab: Tab, source: str) -> None:
    tab.evaluate("document.querySelector('#bar').append(document.createElement('button'))")
    [fault] = faults_of(tab, source)
    assert fault.startswith("button-name")
