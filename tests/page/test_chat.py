"""The chat in a browser: streams, stops, reloads, branches, files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cllm.api import ApiSettings
from cllm.api.chat.chat_template import CHATML
from cllm.engine import Engine, SamplingParams
from tests.api.api_client import eventually, frozen, idle
from tests.page.conftest import Faults, Site, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

ANSWER = ".message.assistant .markdown"
DONE = ".message.assistant footer .regenerate"
# More than the model would say, so that an answer is still coming when the test acts.
ENDLESS = {"ignore_eos": True, "max_tokens": 400, "temperature": 0}
SHORT = {"max_tokens": 12, "temperature": 0}


@contextmanager
def paced(engine: Engine) -> Iterator[None]:
    """A step takes at least 20 ms, as with a larger model, so that a browser can keep up."""
    params = SamplingParams(ignore_eos=True)
    generation = engine.submit("pace", params, on_update=lambda: time.sleep(0.02))
    try:
        yield
    finally:
        generation.cancel()


def send(tab: Tab, text: str) -> None:
    tab.fill("#prompt", text)
    tab.keyboard.press("Enter")


def answer_of(tab: Tab) -> str:
    return tab.locator(ANSWER).last.inner_text()


def wait_for_text(tab: Tab, longer_than: int) -> str:
    """The text of the last answer once it is long enough."""
    eventually(
        lambda: tab.locator(ANSWER).count() > 0 and len(answer_of(tab)) > longer_than,
        f"the answer is longer than {longer_than}",
    )
    return answer_of(tab)


def pause(tab: Tab, selector: str) -> str:
    """The element's text three frames later."""
    text = tab.evaluate(
        """async (selector) => {
            for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
            return document.querySelector(selector).innerText;
        }""",
        selector,
    )
    return str(text)


def stored(tab: Tab) -> list[dict[str, object]]:
    """All messages in the browser's database."""
    found = tab.evaluate("""() => new Promise((resolve) => {
        indexedDB.open("cllm").onsuccess = ({target}) => {
            const store = target.result.transaction("messages").objectStore("messages");
            store.getAll().onsuccess = (event) => resolve(event.target.result);
        };
    })""")
    assert isinstance(found, list)
    return found


def test_an_answer_streams_and_shows_its_counts(tab: Tab, site: Site) -> None:
    site.fields = ENDLESS
    with paced(site.engine):
        send(tab, "Tell me a story about a fox.")
        wait_for_text(tab, 20)
        tab.wait_for_selector(".message.assistant[aria-busy=true]")
        assert tab.is_visible("#stop")
        assert not tab.is_visible("#send")
    tab.wait_for_selector(DONE)
    numbers = tab.inner_text(".statistics")
    assert "tokens/s" in numbers
    assert "first token after" in numbers
    assert "cached" in numbers
    assert tab.is_visible("#send")


def test_stop_keeps_what_was_received_and_continue_goes_on(tab: Tab, site: Site) -> None:
    site.fields = ENDLESS
    with paced(site.engine):
        send(tab, "Tell me a story about a fox.")
        wait_for_text(tab, 20)
        tab.keyboard.press("Escape")
        tab.wait_for_selector(".message.assistant footer .continue")
    eventually(lambda: idle(site.engine), "the generation ends with its client")
    text = answer_of(tab)
    site.fields = SHORT
    tab.click(".message.assistant footer .continue")
    tab.wait_for_selector(DONE)
    assert wait_for_text(tab, len(text)).startswith(text)
    assert tab.locator(".message.assistant").count() == 1


def test_a_reload_in_mid_stream_loses_nothing_and_continues(tab: Tab, site: Site) -> None:
    site.fields, hold = ENDLESS, ExitStack()
    with paced(site.engine):
        send(tab, "Tell me a story about a fox.")
        wait_for_text(tab, 40)
        hold.enter_context(frozen(site.engine))
    with hold:
        # What was under way has arrived once two looks agree.
        eventually(lambda: answer_of(tab) == pause(tab, ANSWER), "the stream is at rest")
        before = answer_of(tab)
        tab.reload()
        tab.wait_for_selector(".message.assistant[aria-busy=true]")
        assert wait_for_text(tab, len(before) - 1).startswith(before)
        site.fields = SHORT
    tab.wait_for_selector(DONE)
    assert wait_for_text(tab, len(before)).startswith(before)
    assert len([each for each in stored(tab) if each["role"] == "assistant"]) == 1


def test_a_reload_during_reasoning_continues_it(
    engine: Engine, new_tab: Callable[..., Tab]
) -> None:
    """The template begins the thoughts; the built-in model does not end them."""
    opens = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    thoughts = ".message.assistant .reasoning p"
    with serving(engine, ApiSettings(chat_template=opens)) as site:
        site.fields = ENDLESS
        tab = new_tab()
        tab.goto(site.url)
        with paced(engine):
            send(tab, "Tell me a story about a fox.")
            shown = tab.locator(thoughts)
            eventually(lambda: len(shown.text_content() or "") > 20, "thoughts arrive")
            with frozen(engine):
                before = shown.text_content() or ""
                tab.reload()
                tab.wait_for_selector(".message.assistant[aria-busy=true]")
                site.fields = {**SHORT, "ignore_eos": True}
        tab.wait_for_selector(DONE)
        assert (shown.text_content() or "").startswith(before)
        [answer] = [each for each in stored(tab) if each["role"] == "assistant"]
        assert answer["content"] == "" and len(str(answer["reasoning"])) > len(before)


def test_an_answer_outlives_a_restart_of_the_server(
    engine: Engine, new_tab: Callable[..., Tab], faults: Faults
) -> None:
    faults.expected = ("net::ERR_",)
    tab = new_tab()
    with ExitStack() as stack:
        first = stack.enter_context(serving(engine))
        port = first.server.port
        first.fields = ENDLESS
        tab.goto(first.url)
        with paced(engine):
            send(tab, "Tell me a story about a fox.")
            wait_for_text(tab, 20)
            first.server.stop()
            tab.wait_for_selector(".message.assistant footer .error")
    text = answer_of(tab)
    assert len(text) > 20
    send(tab, "Are you there?")  # nobody listens
    tab.wait_for_selector(".message.assistant:nth-of-type(4) footer .error")
    with serving(engine, port=port) as second:
        second.fields = SHORT
        tab.click(".message.assistant:nth-of-type(2) footer .continue")
        tab.wait_for_selector(".message.assistant:nth-of-type(2) footer .statistics")
        tab.click(".message.assistant:nth-of-type(4) footer .regenerate")
        tab.wait_for_selector(".message.assistant:nth-of-type(4) footer .statistics")
        assert tab.locator(ANSWER).first.inner_text().startswith(text)


def test_regenerate_and_edit_make_branches(tab: Tab, site: Site) -> None:
    site.fields = SHORT
    send(tab, "Hello")
    tab.wait_for_selector(DONE)
    tab.click(DONE)
    tab.wait_for_selector(".message.assistant .branches >> text=2/2")
    tab.wait_for_selector(DONE)
    tab.click(".message.user .edit")
    tab.fill(".message.user textarea", "Tell me about a lantern.")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".message.user .branches >> text=2/2")
    tab.wait_for_selector(DONE)
    assert tab.locator(".message.assistant .branches").count() == 0
    tab.click(".message.user [aria-label='Earlier branch']")
    tab.wait_for_selector(".message.user >> text=Hello")
    tab.wait_for_selector(".message.assistant .branches >> text=2/2")
    assert len(stored(tab)) == 5


def test_conversations_are_searched_renamed_and_deleted(tab: Tab, site: Site) -> None:
    site.fields = SHORT
    for text in ("About a fox", "About a lantern"):
        tab.click("#new")
        send(tab, text)
        tab.wait_for_selector(DONE)
    titles = tab.locator(".conversations .title")
    assert sorted(titles.all_inner_texts()) == ["About a fox", "About a lantern"]
    tab.fill("#search", "FOX")
    eventually(lambda: titles.count() == 1, "one conversation is listed")
    tab.click("[aria-label='Rename About a fox']")
    tab.fill("dialog input", "Renard")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".conversations .title >> text=Renard")
    tab.click("[aria-label='Delete Renard']")
    tab.click("dialog button[type=submit]")
    tab.fill("#search", "")
    eventually(lambda: titles.all_inner_texts() == ["About a lantern"], "the other one is listed")
    assert len(stored(tab)) == 2


def test_an_exported_file_is_imported_by_another_browser(
    tab: Tab, site: Site, new_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    site.fields = SHORT
    send(tab, "Hello")
    tab.wait_for_selector(DONE)
    tab.click(DONE)
    tab.wait_for_selector(".branches >> text=2/2")
    tab.wait_for_selector(DONE)
    text = answer_of(tab)
    with tab.expect_download() as download:
        tab.click("#export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    other = new_tab()
    other.goto(site.url)
    with other.expect_file_chooser() as chooser:
        other.click("#import")
    chooser.value.set_files(file)
    other.wait_for_selector(".branches >> text=2/2")
    assert other.locator(".message.assistant .text").inner_text() == text
    names = ("role", "content", "state")
    pick = [
        [{name: each[name] for name in names} for each in stored(page)] for page in (tab, other)
    ]
    by_content = [sorted(each, key=json.dumps) for each in pick]
    assert by_content[0] == by_content[1]


def test_a_file_that_is_no_export_is_refused(tab: Tab, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(
        '{"format": "cllm-conversations", "version": 1, "conversations": [{"messages": [{}]}]}'
    )
    with tab.expect_file_chooser() as chooser:
        tab.click("#import")
    chooser.value.set_files(file)
    assert "message 1 is not valid" in tab.inner_text(".notice.error")
    assert stored(tab) == []


def test_files_and_settings_are_sent(tab: Tab, site: Site, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("the lantern is ``` red")
    with tab.expect_file_chooser() as chooser:
        tab.click("#attach")
    chooser.value.set_files(file)
    tab.wait_for_selector(".chip >> text=notes.txt")
    tab.click("#settings")
    assert tab.get_attribute("#set-temperature", "placeholder") == "0.8"
    tab.fill("#set-system", "Be brief.")
    tab.fill("#set-max_tokens", "5")
    tab.fill("#set-schema", "{")
    tab.click("dialog button[type=submit]")
    tab.wait_for_selector("dialog [role=alert] >> text=JSON schema")
    tab.fill("#set-schema", "")
    tab.click("dialog button[type=submit]")
    with tab.expect_request("**/v1/chat/completions") as sent:
        send(tab, "What is red?")
    body = sent.value.post_data_json
    assert body is not None
    assert body["max_tokens"] == 5
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    content = body["messages"][1]["content"]
    assert content == "File notes.txt:\n````\nthe lantern is ``` red\n````\n\nWhat is red?"
    tab.wait_for_selector(DONE)


def test_an_answer_that_follows_a_schema(tab: Tab) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    tab.click("#settings")
    tab.fill("#set-schema", json.dumps(schema))
    tab.click("dialog button[type=submit]")
    send(tab, "A number")
    tab.wait_for_selector(DONE)
    assert tab.input_value(".form label:has-text('n') input") in ("1", "2")
    tab.click(".message.assistant summary")
    assert json.loads(answer_of(tab))["n"] in (1, 2)


def test_a_refusal_of_the_server_is_shown(tab: Tab, site: Site, faults: Faults) -> None:
    faults.expected = ("400",)
    site.fields = {"temperature": -1}
    send(tab, "Hello")
    tab.wait_for_selector(".message.assistant .error")
    assert "temperature" in tab.inner_text(".message.assistant .error")


def test_two_thousand_messages_are_drawn_as_they_come_near(tab: Tab, tmp_path: Path) -> None:
    messages = [
        {
            "id": str(number), "parent": str(number - 1) if number else None, "created": number + 1,
            "role": "assistant" if number % 2 else "user", "state": "done",
            "content": f"**message {number}** " + "word " * 60,
        }
        for number in range(2000)
    ]  # fmt: skip
    record = {"title": "Long", "leaf": "1999", "settings": {}, "messages": messages}
    file = tmp_path / "long.json"
    file.write_text(
        json.dumps({"format": "cllm-conversations", "version": 1, "conversations": [record]})
    )
    with tab.expect_file_chooser() as chooser:
        tab.click("#import")
    chooser.value.set_files(file)
    tab.wait_for_selector("article:nth-of-type(2000) strong >> text=message 1999")
    assert tab.locator("article").count() == 2000
    assert tab.locator("article footer").count() < 100
    tab.evaluate("document.querySelector('.scroll').scrollTop = 0")
    tab.wait_for_selector("article:nth-of-type(2) strong >> text=message 1")
    assert tab.locator("article footer").count() < 200
