"""Markdown as HTML: what it becomes, its bounds, and that no text of a model does harm."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cllm.http import HttpError, HttpRequest
from cllm.page.rendering import Rendering
from tests.api.api_client import eventually
from tests.page.conftest import Site
from tests.page.payloads import PAYLOADS

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

pytest.importorskip("nh3")
pytest.importorskip("markdown_it")
pytest.importorskip("latex2mathml")


def request_of(body: Any) -> HttpRequest:
    return HttpRequest.build("POST", "/page/render", body=json.dumps(body).encode())


def rendered(text: str) -> str:
    response = Rendering().endpoint(request_of({"markdown": text}))
    assert isinstance(response.body, bytes)
    return str(json.loads(response.body)["html"])


def test_text_becomes_html() -> None:
    assert rendered("# A *b*") == "<h1>A <em>b</em></h1>\n"
    assert '<td align="right">1</td>' in rendered("|a|\n|-:|\n|1|")
    assert rendered("3. x\n4. y").startswith('<ol start="3">')


def test_code_has_classes_and_its_language() -> None:
    html = rendered("```python\ndef f(): pass\n```")
    assert '<code data-language="python"><span class="k">def</span>' in html
    assert "style=" not in html


def test_code_in_an_unknown_language_is_text() -> None:
    assert '<code data-language="zork">a &lt; b\n</code>' in rendered("```zork\na < b\n```")


@pytest.mark.parametrize(
    ("text", "display"),
    [
        ("$x^2$", "inline"),
        (r"\(x^2\)", "inline"),
        ("$$\nx^2\n- y\n$$", "block"),
        ("\\[\nx^2\n= y\n\\]", "block"),
        (r"so \[ x^2 \] holds", "block"),
    ],
)
def test_formulas_become_mathml(text: str, display: str) -> None:
    html = rendered(text)
    assert f'<math display="{display}">' in html
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html


@pytest.mark.parametrize("text", ["it costs $5 or $6", r"\$x$", "a $ b $ c", "`$x$`"])
def test_dollars_that_are_no_formula_stay(text: str) -> None:
    assert "<math" not in rendered(text)


def test_what_is_no_latex_is_shown_as_it_is() -> None:
    html = rendered("$\\frac{1$")
    assert "frac" in html


def test_formulas_without_an_end_are_not_searched_again_and_again() -> None:
    """Each opening looks no further than the next one."""
    looked = 0

    def count(_frame: Any, event: str, called: Any) -> None:
        nonlocal looked
        looked += event == "c_call" and called.__name__ == "endswith"

    sys.setprofile(count)
    try:
        rendered("\\[\n" * 400)
    finally:
        sys.setprofile(None)
    assert 400 <= looked < 400 * 20


def test_a_body_that_is_wrong_is_refused_by_name() -> None:
    bodies: tuple[Any, ...] = ([], {}, {"markdown": 1})
    for body in bodies:
        with pytest.raises(HttpError, match="markdown: expected a string"):
            Rendering().endpoint(request_of(body))


def test_a_long_text_is_refused() -> None:
    small = Rendering(most=10)
    small.endpoint(request_of({"markdown": "中" * 3}))
    for text in ("中" * 4, "x" * 1000):
        with pytest.raises(HttpError) as refused:
            small.endpoint(request_of({"markdown": text}))
        assert refused.value.status == 413


def test_the_cache_answers_again_and_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from cllm.page import markdown

    calls: list[str] = []

    def render(text: str) -> str:
        calls.append(text)
        return text * 10

    monkeypatch.setattr(markdown, "render", render)
    rendering = Rendering(cached=100)
    for text in ("aaaa", "bbbb", "aaaa", "cccc", "aaaa", "bbbb"):
        rendering.endpoint(request_of({"markdown": text}))
    assert calls == ["aaaa", "bbbb", "cccc", "bbbb"]  # b was used longest ago when c came


def test_without_its_packages_it_answers_501(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cllm.page.markdown", None)
    with pytest.raises(HttpError, match=r"pip install '\.\[page\]'") as refused:
        Rendering().endpoint(request_of({"markdown": "x"}))
    assert refused.value.status == 501


def test_a_text_of_marks_alone_is_shown_as_text() -> None:
    from cllm.page.markdown import _MOST_MARKS

    marks = "*a*\n" * (_MOST_MARKS // 3)
    assert rendered(marks).startswith("<p><em>a</em>")
    assert rendered(marks + "<b>*\n*").endswith("*a*<br>\n&lt;b&gt;*<br>\n*</p>\n")
    assert rendered("中文，字。" * 2000 + "**粗**").endswith("<strong>粗</strong></p>\n")


@pytest.mark.parametrize("opening", ["[", "!["])
def test_ends_of_links_are_not_searched_again_and_again(
    monkeypatch: pytest.MonkeyPatch, opening: str
) -> None:
    from cllm.page import markdown

    tried: list[int] = []
    for name in ("link", "image"):
        rule = getattr(markdown, name)

        def counting(state: Any, silent: bool, rule: Any = rule) -> bool:
            tried.append(state.pos)
            return bool(rule(state, silent))

        monkeypatch.setattr(markdown, name, counting)
    html = rendered(opening * 5500)
    assert html == f"<p>{opening * 5500}</p>\n"
    assert len(tried) < 2000
    tried.clear()
    assert rendered("[a](http://b.test/) " * 1000).count("<a ") == 1000


def test_formulas_and_code_have_a_budget() -> None:
    html = rendered("$x$ " * 1000)
    assert 100 < html.count("<math") < 500
    assert html.count("<math") + html.count("<code>x</code>") == 1000
    html = rendered("```py\ndef\n```\n" * 300)
    assert 10 < html.count('<span class="k">def</span>') < 100
    assert html.count("<pre>") == 300


class Elements(HTMLParser):
    """The elements of HTML with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_there_are_enough_payloads() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 60


@pytest.mark.parametrize("text", PAYLOADS)
def test_no_payload_yields_an_element_that_acts(text: str) -> None:
    for tag, attributes in Elements(rendered(text)).found:
        assert tag not in {"script", "style", "iframe", "object", "embed", "form", "input", "svg",
                           "base", "meta", "link", "video", "audio", "template"}  # fmt: skip
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "id")]
        href, source = attributes.get("href"), attributes.get("src")
        assert href is None or href.startswith(("http://", "https://", "mailto:"))
        assert source is None or source.startswith("data:image/png;")


SHOW_ALL = """async () => {
    for (const each of document.querySelectorAll("article")) {
        each.scrollIntoView();
        await new Promise(requestAnimationFrame);
    }
}"""
AUDIT = """() => {
    const wrong = [];
    for (const each of document.querySelectorAll("article *, .conversations *, .head *")) {
        const names = each.getAttributeNames();
        const tags = /^(script|style|iframe|object|embed|base|meta|link|svg)$/i;
        if (names.some((name) => name.startsWith("on") || name === "style")
            || tags.test(each.tagName)
            || (each.href && !/^(https?:|mailto:)/.test(each.href))) wrong.push(each.outerHTML);
    }
    const waiting = document.querySelectorAll("article.assistant p.open:not(.reasoning p)").length;
    return [wrong, window.hacked ?? null, waiting];
}"""


def test_no_payload_does_harm_in_the_browser(
    site: Site, new_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    """As answer, question, thought, call, result, file, title; errors in the console fail too."""
    messages: list[dict[str, Any]] = []
    for number, text in enumerate(PAYLOADS):
        for role in ("user", "assistant"):
            messages.append({
                "id": f"{role}{number}", "parent": messages[-1]["id"] if messages else None,
                "created": len(messages) + 1, "role": role, "state": "done", "content": text,
                "files": [{"name": text, "text": text}],
                **({"reasoning": text, "toolCalls": [{"id": text, "name": text, "arguments": text}]}
                   if role == "assistant" else {}),
            })  # fmt: skip
        messages.append({
            "id": f"tool{number}", "parent": messages[-1]["id"], "created": len(messages) + 1,
            "role": "tool", "state": "done", "content": text, "toolCallId": text,
        })  # fmt: skip
    conversations = [
        {"title": text, "settings": {}, "messages": messages if not number else []}
        for number, text in enumerate(PAYLOADS)
    ]
    file = tmp_path / "payloads.json"
    file.write_text(
        json.dumps({"format": "cllm-conversations", "version": 1, "conversations": conversations})
    )
    tab = new_tab()
    tab.goto(site.url)
    with tab.expect_file_chooser() as chooser:
        tab.click("#import")
    chooser.value.set_files(file)
    tab.wait_for_selector(f"article:nth-of-type({len(messages)})")
    tab.evaluate(SHOW_ALL)
    footers = tab.locator("article footer")
    eventually(lambda: footers.count() == len(messages), "every message is drawn")
    eventually(lambda: tab.evaluate(AUDIT)[2] == 0, "every answer is rendered")
    wrong, hacked, _ = tab.evaluate(AUDIT)
    assert wrong == []
    assert hacked is None
    assert tab.locator("article .markdown").count() == len(PAYLOADS)
    assert tab.url.startswith(site.url)
