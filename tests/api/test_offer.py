"""What is made of a request's tools is remembered, and never taken for other tools' or owners'."""

from __future__ import annotations

from typing import Any

from cllm.api.chat.conversation import Tool
from cllm.api.chat.offer import MOST_BYTES, Offer


class _Template:
    """What is remembered belongs to one."""


def tool(name: str = "look", **parameters: Any) -> Tool:
    return Tool(name, "A tool", {"type": "object", "properties": parameters})


class Made:
    """Makes a text, and counts how often."""

    def __init__(self, text: str = "made") -> None:
        self.times = 0
        self._text = text

    def __call__(self) -> str:
        self.times += 1
        return self._text


def test_the_same_tools_are_remembered() -> None:
    template, first, second = _Template(), Made("first"), Made("second")
    assert Offer(template, ("a",), [tool(x={})]).once("about", first) == "first"
    assert Offer(template, ("a",), [tool(x={})]).once("about", second) == "first"
    assert (first.times, second.times) == (1, 0)


def test_what_differs_is_made_anew() -> None:
    template, made = _Template(), Made()
    given: list[tuple[object, tuple[str, ...], list[Tool], object]] = [
        (template, ("a",), [tool(x={"maximum": 1})], "about"),
        (_Template(), ("a",), [tool(x={"maximum": 1})], "about"),
        (template, ("b",), [tool(x={"maximum": 1})], "about"),
        (template, ("a", "salt"), [tool(x={"maximum": 1})], "about"),
        (template, ("a",), [tool(x={"maximum": 1})], "other"),
        (template, ("a",), [tool(x={"maximum": 1.0})], "about"),
        (template, ("a",), [tool(x={"maximum": True})], "about"),
        (template, ("a",), [tool(x={"maximum": "1"})], "about"),
        (template, ("a",), [tool("see", x={"maximum": 1})], "about"),
        (template, ("a",), [tool(x={"maximum": 1}), tool("see")], "about"),
        (template, ("a",), [tool(x={}, y={})], "about"),
        (template, ("a",), [tool(y={}, x={})], "about"),  # prompts show the order
    ]
    for of, owner, tools, about in given:
        Offer(of, owner, tools).once(about, made)
    assert made.times == len(given)


def test_memory_is_bounded() -> None:
    template = _Template()
    for number in range(300):
        Offer(template, (), [tool(x={"description": f"{number}" + 20_000 * "x"})]).once("", Made())
    again = Made()
    Offer(template, (), [tool(x={"description": "0" + 20_000 * "x"})]).once("", again)
    assert again.times == 1
    for _ in range(2):  # larger than is kept
        large = [tool(x={"description": MOST_BYTES * "x"})]
        Offer(template, (), large).once("", again)
    assert again.times == 3


def test_tools_that_are_not_json_are_not_remembered() -> None:
    template, made = _Template(), Made()
    for _ in range(2):
        Offer(template, (), [tool(x=object())]).once("", made)
    assert made.times == 2
