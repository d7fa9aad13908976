"""Which part of a growing answer is rendered, and which is still text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.page.conftest import Site
from tests.page.test_chat import SHORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page as Tab

TEXT = """# Title

A paragraph
of two lines.

```py
a = 1

b = 2
```

- one

  more of one

- two

$$
x

y
$$

The end"""
BLOCKS = [
    "# Title",
    "A paragraph\nof two lines.",
    "```py\na = 1\n\nb = 2\n```",
    "- one\n\n  more of one\n\n- two",
    "$$\nx\n\ny\n$$",
]


@pytest.fixture(scope="module")
def split(browser: Any, site: Site) -> Callable[[str], dict[str, Any]]:
    tab = browser.new_page()
    tab.goto(site.url)
    version = tab.evaluate("document.querySelector('script').src").rsplit("/", 1)[0]

    def split(text: str) -> dict[str, Any]:
        found: dict[str, Any] = tab.evaluate(
            "async ([version, text]) => (await import(`${version}/chat/blocks.js`)).split(text)",
            [version, text],
        )
        return found

    return split


def test_finished_blocks(split: Callable[[str], dict[str, Any]]) -> None:
    assert split(TEXT) == {"finished": BLOCKS, "open": "The end"}


def test_a_finished_block_never_changes_while_text_is_added(
    split: Callable[[str], dict[str, Any]],
) -> None:
    for size in range(len(TEXT)):
        finished = split(TEXT[:size])["finished"]
        assert finished == BLOCKS[: len(finished)], TEXT[:size]


def test_results_of_tool_calls_are_sent_back(tab: Tab, site: Site) -> None:
    """An answer with a call comes by import: the built-in model makes none."""
    site.fields = dict(SHORT)
    call = {"id": "c1", "name": "weather", "arguments": '{"city": "Bonn"}'}
    messages = [
        {"id": "a", "parent": None, "created": 1, "role": "user", "content": "?", "state": "done"},
        {"id": "b", "parent": "a", "created": 2, "role": "assistant", "content": "",
         "state": "done", "toolCalls": [call]},
    ]  # fmt: skip
    file = {"format": "cllm-conversations", "version": 1,
            "conversations": [{"title": "t", "leaf": "b", "messages": messages}]}  # fmt: skip
    with tab.expect_file_chooser() as chooser:
        tab.click("#import")
    chooser.value.set_files(
        {"name": "t.json", "mimeType": "application/json", "buffer": json.dumps(file).encode()}
    )
    tab.fill("[aria-label='Result of weather']", "sunny")
    with tab.expect_request("**/v1/chat/completions") as sent:
        tab.click(".calls > button")
    body = sent.value.post_data_json
    assert body is not None
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bonn"}'
    assert body["messages"][2] == {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
    tab.locator(".message.assistant").nth(1).locator("footer button").first.wait_for()
