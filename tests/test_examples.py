"""The programs in docs/examples run as they are written, and do what their first lines say."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
WAIT = 100.0  # seconds


def run(name: str, *arguments: str | Path, status: int = 0) -> str:
    """Run an example to its end and return its output."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=WAIT,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout


@contextmanager
def serving(*command: str | Path, found: str) -> Iterator[int]:
    """A server as a child process; the port is what `found` finds in its output."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        killer = threading.Timer(WAIT, child.kill)
        killer.start()
        try:
            yield next(int(port[1]) for line in child.stdout if (port := re.search(found, line)))
            child.send_signal(signal.SIGTERM)
            child.stdout.read()
            assert child.wait() == 0
        finally:
            killer.cancel()
            child.kill()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real server with the built-in model: the base URL for OpenAI's client."""
    command = ("-m", "cllm.main", "--port", "0", "--parallel", "2")
    with serving(*command, found=r"curl http://127\.0\.0\.1:(\d+)/") as port:
        yield f"http://127.0.0.1:{port}/v1"


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
    """Status, headers and text of one answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()


def test_every_example_is_listed_and_has_a_test() -> None:
    listed = re.findall(r"^\| \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
    here = Path(__file__).read_text()
    assert [name for name in listed if f'"{name}"' not in here] == []


def test_the_embedded_server_answers_streams_waits_and_ends() -> None:
    command = (EXAMPLES / "embed_http.py", "--port", "0")
    with (
        serving(*command, found=r"http://127\.0\.0\.1:(\d+)$") as port,
        ThreadPoolExecutor(1) as pool,
    ):
        # This client's request is taken before the note is added, or it waits for the second.
        waiting = pool.submit(ask, port, "GET", "/next-note")
        status, headers, text = ask(port, "POST", "/notes", {"text": "buy milk"})
        assert (status, json.loads(text)) == (201, {"number": 1, "text": "buy milk"})
        assert float(headers["X-Milliseconds"]) >= 0
        assert json.loads(ask(port, "GET", "/notes/1")[2])["text"] == "buy milk"
        assert ask(port, "GET", "/notes/2")[0] == 404
        refused = ask(port, "POST", "/notes", {"text": 1})
        assert refused[0] == 400 and "text: a string is expected" in refused[2]
        events = ask(port, "GET", "/countdown")[2]
        assert events == "".join(f'data: {{"number":{number}}}\n\n' for number in (3, 2, 1))
        number = 1
        while not waiting.done() and number < 1000:
            number = json.loads(ask(port, "POST", "/notes", {"text": "another"})[2])["number"]
        status, headers, text = waiting.result(WAIT)
        assert status == 200 and 1 <= json.loads(text)["number"] <= number
        assert "X-Milliseconds" in headers


def test_the_embedded_engine_shares_a_batch_streams_and_keeps_a_deadline() -> None:
    lines = run("embed_engine.py").splitlines()
    assert lines[0] == "Model: cLLM Stories, 2048 tokens per sequence"
    assert lines[1].startswith("Once upon a time") and lines[1].endswith("[length]")
    assert len([line for line in lines if line.endswith(("[length]", "[stop]"))]) == 4
    assert any(line.startswith("Stream: There was a little panda ") for line in lines)
    assert any(line.startswith("Deadline: the deadline of 0.2 s passed") for line in lines)
    batch = re.fullmatch(r"Batch: ([\d.]+) sequences per step", lines[-1])
    assert batch is not None and float(batch[1]) > 1


def test_prompts_become_lines_in_their_order_and_a_second_run_goes_on(tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    texts = [f"Story {number}: once upon a time" for number in range(20)]
    texts[3], texts[5] = "", "word " * 3000
    prompts.write_text("\n".join(texts[:15]) + "\n")
    options = (prompts, answers, "--parallel", "4", "--max-tokens", "5")
    assert run("batch_to_jsonl.py", *options).startswith("15 of 15 prompts")
    prompts.write_text("\n".join(texts) + "\n")
    assert run("batch_to_jsonl.py", *options).startswith("5 of 20 prompts")
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [each["prompt"] for each in found] == texts
    assert "non-empty" in found[3]["error"] and "too long" in found[5]["error"]
    assert all(
        each["tokens"] <= 5 and each["text"]
        for index, each in enumerate(found)
        if index not in (3, 5)
    )


def test_a_chat_is_streamed_with_its_usage(url: str) -> None:
    text = run("openai_stream.py", "Tell me a story about a fox and a lantern.", "--url", url)
    story, _, usage = text.rstrip().rpartition("\n")
    assert "fox" in story and "lantern" in story
    counts = re.fullmatch(r"\[cllm-stories-q8_0: (\d+) \+ (\d+) tokens\]", usage)
    assert counts is not None and int(counts[2]) > 50


def test_the_tool_loop_calls_and_gives_results_until_an_answer_comes(url: str) -> None:
    lines = run("tool_loop.py", "--force", "What is 17 times 23?", "--url", url).splitlines()
    calls = [re.fullmatch(r"call: multiply\((\{.*\})\) = (\d+)", line) for line in lines[:-1]]
    assert calls
    for call in calls:
        assert call is not None, lines
        arguments = json.loads(call[1])
        assert arguments["a"] * arguments["b"] == int(call[2])
    assert lines[-1].startswith(("answer: ", "no answer after 5 turns"))


def test_an_answer_is_an_object_of_the_schema(url: str) -> None:
    lines = run("structured_output.py", "Invent an animal for a story.", "--url", url).splitlines()
    animal = json.loads(lines[-1])
    assert animal["kind"] in ("fox", "hedgehog", "owl", "panda")
    assert 1 <= animal["age"] <= 99 and 1 <= len(animal["friends"]) <= 3
    assert lines[0] == f"{animal['name']}, a {animal['kind']}, is {animal['age']} years old."


def test_a_server_that_is_not_there_is_an_error() -> None:
    assert run("openai_stream.py", "x", "--url", "http://127.0.0.1:9/v1", status=1) == ""
