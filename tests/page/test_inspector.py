"""The inspector and the benchmark view in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.api.api_client import eventually
from tests.page.conftest import Faults, Site
from tests.page.test_chat import DONE, SHORT, send, stored

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab


def inspect(tab: Tab, site: Site, view: str) -> None:
    tab.goto(f"{site.url}#/{view}")
    tab.wait_for_selector(f".root.{view} .sections")


def run(tab: Tab, question: str) -> None:
    tab.fill("#question", question)
    tab.fill("#warmth", "0")
    tab.fill("#most", "8")
    tab.click("#run")
    tab.wait_for_selector("[aria-label=Answer][aria-busy=false]")


def tokens_of(tab: Tab) -> list[str]:
    return tab.locator("[aria-label=Answer] .token").all_inner_texts()


def test_an_alternative_begins_a_branch_at_its_token(tab: Tab, site: Site) -> None:
    inspect(tab, site, "inspector")
    run(tab, "Tell me a story about a fox.")
    first = tokens_of(tab)
    assert len(first) == 8
    tab.hover("[aria-label=Answer] .token >> nth=3")
    rows = tab.locator(".detail li")
    assert rows.count() == 8
    assert "%" in rows.first.inner_text()
    other = tab.locator(".detail li button:not(:disabled)").first
    chosen = other.inner_text()
    assert chosen != first[3]
    other.click()
    tab.wait_for_selector("[aria-label=Answer][aria-busy=false]")
    second = tokens_of(tab)
    assert second[:4] == [*first[:3], chosen]
    assert len(second) == 4 + 8
    tab.click(".branchlist button >> nth=0")
    assert tokens_of(tab) == first


def test_a_branch_is_made_by_keyboard(tab: Tab, site: Site) -> None:
    inspect(tab, site, "inspector")
    run(tab, "Tell me a story about a fox.")
    tab.focus("[aria-label=Answer] .token >> nth=2")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Enter")
    eventually(lambda: tab.locator(".branchlist button").count() == 2, "a branch begins")


def test_the_chat_hands_an_answer_over_and_gets_a_branch(tab: Tab, site: Site) -> None:
    site.fields = dict(SHORT)
    send(tab, "Hello")
    tab.wait_for_selector(DONE)
    tab.click(".message.assistant .inspect")
    tab.wait_for_selector("#question")
    assert tab.input_value("#question") == "Hello"
    assert json.loads(tab.input_value("#messages")) == [{"role": "user", "content": "Hello"}]
    site.fields = {}
    run(tab, "Hello")
    tab.hover("[aria-label=Answer] .token >> nth=3")
    tab.locator(".detail li button:not(:disabled)").first.click()
    tab.wait_for_selector("[aria-label=Answer][aria-busy=false]")
    text = "".join(tab.locator("[aria-label=Answer] .token").all_text_contents())
    tab.click("#to-chat")
    tab.wait_for_selector(".message.assistant .branches >> text=2/2")

    def kept() -> bool:
        answers = [each["content"] for each in stored(tab) if each["role"] == "assistant"]
        return text.replace("⏎", "") in answers

    eventually(kept, "the branch is stored")
    tab.click(".message.assistant .continue")  # it was cut at its limit of tokens
    tab.wait_for_selector(DONE)
    assert tab.locator(".message").count() == 2


def test_a_branch_of_another_question_is_a_conversation_of_its_own(tab: Tab, site: Site) -> None:
    inspect(tab, site, "inspector")
    run(tab, "Tell me a story about a fox.")
    tab.click("#to-chat")
    tab.wait_for_selector(".message.user >> text=Tell me a story about a fox.")
    assert tab.locator(".message").count() == 2
    assert tab.locator(".conversations .title").all_inner_texts() == [
        "Tell me a story about a fox."
    ]


def test_the_tokens_of_a_text(tab: Tab, site: Site) -> None:
    inspect(tab, site, "inspector")
    tab.fill("#tokenize", "Hi 中\n")
    tab.wait_for_selector(".count >> text=5 tokens, 5 characters")
    assert "".join(tab.locator(".plain .token").all_text_contents()) == "Hi 中⏎\n"
    tab.check("#special")
    tab.wait_for_selector(".count >> text=6 tokens")


def test_the_prompt_of_a_conversation(tab: Tab, site: Site) -> None:
    inspect(tab, site, "inspector")
    tab.fill("#messages", '[{"role": "user", "content": "<b>hi</b>"}]')
    tab.click("#apply")
    prompt = "<|im_start|>user⏎\n<b>hi</b><|im_end|>⏎\n<|im_start|>assistant⏎\n"
    shown = tab.locator(".rendered")
    eventually(lambda: shown.text_content() == prompt, "the prompt is shown")
    special = tab.locator(".rendered .special").all_inner_texts()
    assert special == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    tab.fill("#messages", "[")
    tab.click("#apply")
    tab.wait_for_selector(".failure[role=alert] >> text=JSON")


def test_runs_of_the_benchmark_are_compared_and_exported(
    tab: Tab, site: Site, tmp_path: Path
) -> None:
    inspect(tab, site, "bench")
    tab.fill("#bench-requests", "2")
    tab.fill("#bench-concurrency", "1, 2")
    tab.fill("#bench-max_tokens", "4")
    tab.click("#bench-run")
    tab.wait_for_selector("[role=status] >> text=Done.")
    assert tab.locator(".plots svg").count() == 5
    assert tab.locator(".plots svg").first.locator("rect").count() == 2
    tab.reload()
    tab.wait_for_selector(".runs tbody tr >> nth=1")
    tab.uncheck("[aria-label='Show #1 ×1']")
    assert tab.locator(".plots svg").first.locator("rect").count() == 1
    with tab.expect_download() as download:
        tab.click("#bench-export")
    file = tmp_path / "benchmarks.json"
    download.value.save_as(file)
    runs = json.loads(file.read_text())["runs"]
    assert [run["asked"]["concurrency"] for run in runs] == [2, 1]
    assert all(run["results"]["successful_requests"] == 2 for run in runs)


def test_a_benchmark_that_is_refused_says_why(tab: Tab, site: Site, faults: Faults) -> None:
    faults.expected = ("400",)
    inspect(tab, site, "bench")
    tab.fill("#bench-requests", "0")
    tab.click("#bench-run")
    tab.wait_for_selector("[role=status] >> text=requests")
