"""The page in a browser: first paint, bytes, frames of a long conversation; what watchers cost."""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .clients.browser import BrowserError, Received, chromium
from .clients.load import Client, request_bytes
from .clients.streams import Call, read_streams
from .common import BenchError, Report, parse, parser, percentile, positive, wait
from .servers.server import HOST, Server, cllm_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

EPILOG = """\
Loads have an empty cache. Frames are the times between two animation frames while the mouse wheel
turns and while an answer arrives at the end of a conversation of --messages messages. Watchers read
GET /monitor; streams run in turns with and without them.

examples:
  python -m scripts.bench page
  python -m scripts.bench page --quick
"""
PAINT = 300.0  # ms
BYTES = 120_000
SHARE = 0.01  # of a core
WATCHERS = 10
STREAMS = 16
SILENCE = 60.0

_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
# Times between frames, and tasks of 50 ms and more, until stopFrames() is called.
_FRAMES = """() => {
    const frames = [], tasks = [];
    const observer = new PerformanceObserver((list) =>
        tasks.push(...list.getEntries().map(({duration}) => duration)));
    observer.observe({entryTypes: ["longtask"]});
    let last = performance.now(), running = true;
    const frame = (now) => {
        frames.push(now - last);
        last = now;
        if (running) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    window.stopFrames = () => { running = false; observer.disconnect(); return {frames, tasks}; };
}"""


def loads(report: Report, browser: Browser, server: Server, options: argparse.Namespace) -> None:
    """The first visit: until something is painted, until one can write, until the first word."""
    rows: dict[str, list[float]] = {"first paint, ms": [], "can write, ms": [], "bytes": []}
    responses = 0
    for _ in range(options.loads):
        with visit(browser, server) as (tab, received):
            ready = tab.evaluate("performance.now()")
            paint = tab.evaluate(_PAINT)
            while paint is None:
                paint = tab.evaluate(f"new Promise(requestAnimationFrame).then(() => {_PAINT})")
            send(tab, "Hello")
            tab.wait_for_selector(".assistant .markdown p:not(:empty)")
            for name, value in zip(rows, (paint, ready, received.bytes), strict=True):
                rows[name].append(value)
            responses = received.responses
    report.table(
        f"A first visit, median of {options.loads}; bytes until the first answer arrives",
        [
            {
                **{name: statistics.median(found) for name, found in rows.items()},
                "slowest paint, ms": max(rows["first paint, ms"]),
                "responses": responses,
            }
        ],
    )
    paint = statistics.median(rows["first paint, ms"])
    report.target(f"first paint under {PAINT:g} ms", paint, paint < PAINT)
    most = max(rows["bytes"])
    report.target(f"at most {BYTES} bytes", most, most <= BYTES)


@contextlib.contextmanager
def visit(browser: Browser, server: Server) -> Iterator[tuple[Page, Received]]:
    """A tab with an empty cache, once one can write in it."""
    context = browser.new_context()
    try:
        tab = context.new_page()
        received = Received(tab)
        tab.goto(f"http://{HOST}:{server.port}/")
        tab.wait_for_selector("#prompt")
        yield tab, received
    finally:
        context.close()


def send(tab: Page, text: str) -> None:
    """Send a message."""
    tab.fill("#prompt", text)
    tab.keyboard.press("Enter")


def frames(report: Report, browser: Browser, server: Server, options: argparse.Namespace) -> None:
    """A long conversation: scrolled through, then an answer streams at its end."""
    rows = []
    with visit(browser, server) as (tab, _):
        with tab.expect_file_chooser() as chooser:
            tab.click("#import")
        began = time.perf_counter()
        chooser.value.set_files(conversation(options.messages))
        tab.wait_for_selector(f"article:nth-of-type({options.messages}) strong")
        opened = 1000 * (time.perf_counter() - began)
        tab.hover(".scroll")
        tab.evaluate(_FRAMES)
        for _ in range(options.turns):
            tab.mouse.wheel(0, -700)
            tab.evaluate("new Promise(requestAnimationFrame)")
        rows.append(frame_row("wheel turns", tab))
        tab.evaluate("(box) => box.scrollTo(0, box.scrollHeight)", tab.query_selector(".scroll"))
        tab.route("**/v1/chat/completions", only_the_last)
        tab.evaluate(_FRAMES)
        send(tab, "Tell me a long story.")
        tab.wait_for_selector(".assistant:last-of-type footer .regenerate", timeout=120_000)
        rows.append(frame_row("an answer arrives", tab))
    report.table(f"{options.messages} messages, imported and shown after {opened:.0f} ms", rows)


def only_the_last(route: Route) -> None:
    """Send on the last message alone: the model's context is shorter than the conversation."""
    body = json.loads(route.request.post_data or "{}")
    more = {"max_tokens": 400, "ignore_eos": True}
    route.continue_(post_data=json.dumps({**body, **more, "messages": body["messages"][-1:]}))


def frame_row(what: str, tab: Page) -> dict[str, Any]:
    """End the recording of frames."""
    found = tab.evaluate("stopFrames()")
    times, tasks = found["frames"], found["tasks"]
    return {
        "while": what,
        "frames": len(times),
        "median, ms": statistics.median(times),
        "99 %, ms": percentile(times, 99),
        "longest, ms": max(times),
        "tasks over 50 ms": len(tasks),
        "longest task, ms": max(tasks, default=0.0),
    }


def conversation(size: int) -> Any:
    """A file of one conversation: prose, lists, code and tables in turns."""
    texts = (
        "**Message** " + "with some words " * 20,
        "- one\n- two\n- three\n\n" + "And a paragraph. " * 10,
        "```py\ndef f(x):\n    return x + 1\n```\n\nSo **much** for that.",
        "| a | b |\n|---|---|\n| 1 | **2** |\n",
    )
    messages = [
        {
            "id": str(n), "parent": str(n - 1) if n else None, "created": n + 1, "state": "done",
            "role": "assistant" if n % 2 else "user", "content": f"**{n}** {texts[n // 2 % 4]}",
        }
        for n in range(size)
    ]  # fmt: skip
    record = {"title": "Long", "leaf": str(size - 1), "settings": {}, "messages": messages}
    file = {"format": "cllm-conversations", "version": 1, "conversations": [record]}
    data = json.dumps(file).encode()
    return {"name": "long.json", "mimeType": "application/json", "buffer": data}


class Watchers:
    """Clients that read GET /monitor, for the duration of a with statement."""

    def __init__(self, server: Server, count: int) -> None:
        self._address = (HOST, server.port)
        self._count = count
        self._sockets: list[socket.socket] = []
        self._reader = threading.Thread(target=self._read, name="bench-watchers")
        self._ended = threading.Event()
        self.bytes = 0

    def __enter__(self) -> Watchers:
        for _ in range(self._count):
            connection = socket.create_connection(self._address, 10)
            connection.sendall(request_bytes("GET", "/monitor"))
            self._sockets.append(connection)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for connection in self._sockets:
            connection.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        for connection in self._sockets:
            connection.close()

    def _read(self) -> None:
        poller = select.poll()
        sockets = {connection.fileno(): connection for connection in self._sockets}
        for number in sockets:
            poller.register(number, select.POLLIN)
        while not self._ended.wait(0.01):
            for number, _ in poller.poll(200):
                with contextlib.suppress(OSError):
                    self.bytes += len(sockets[number].recv(1 << 16))


def watchers(report: Report, server: Server, options: argparse.Namespace) -> None:
    """The idle server's processor time, and the speed of streams, with and without watchers."""
    shares: dict[int, float] = {}
    for count in (0, WATCHERS):
        with Watchers(server, count) as crowd:
            wait(1.0, f"{count} watchers")
            before = server.cpu_seconds()
            wait(options.seconds, f"{count} watchers")
            shares[count] = (server.cpu_seconds() - before) / options.seconds
            if count and not crowd.bytes:
                raise BenchError("the watchers received nothing")
    speeds: dict[int, list[float]] = {0: [], WATCHERS: []}
    for turn in range(options.rounds):
        for count in (0, WATCHERS) if turn % 2 else (WATCHERS, 0):
            with Watchers(server, count):
                speeds[count].append(speed(server, options.tokens))
    report.table(
        f"{WATCHERS} watchers; {STREAMS} streams, median of {options.rounds} turns",
        [
            {
                "watchers": count,
                "share of a core, idle": shares[count],
                "tokens/s": statistics.median(speeds[count]),
                "slowest": min(speeds[count]),
                "fastest": max(speeds[count]),
            }
            for count in speeds
        ],
    )
    cost = shares[WATCHERS] - shares[0]
    report.target(f"{WATCHERS} watchers take {SHARE:.0%} of a core", cost, cost <= SHARE)


def speed(server: Server, tokens: int) -> float:
    """Tokens per second of streams that run at once."""
    body = {"prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True}
    call = Call(request_bytes("POST", "/generate_stream", body))
    began = time.perf_counter()
    done = read_streams(
        HOST, server.port, [[call]] * STREAMS, silence=SILENCE, progress=lambda: None
    )
    seconds = time.perf_counter() - began
    for [stream] in done:
        events, _ = stream.events()
        if json.loads(events[-1])["usage"]["completion_tokens"] != tokens:
            raise BenchError(f"not {tokens} tokens: {events[-1]!r}")
    return STREAMS * tokens / seconds


def main() -> None:
    """The command `page`."""
    options = parser("The page in a browser, and what its monitor costs.", EPILOG)
    options.add_argument("--loads", type=positive, default=15, help="first visits (15)")
    options.add_argument(
        "--messages", type=positive, default=2000, help="of the conversation (2000)"
    )
    options.add_argument("--turns", type=positive, default=300, help="of the mouse wheel (300)")
    options.add_argument("--seconds", type=float, default=10.0, help="of an idle server (10)")
    options.add_argument("--rounds", type=positive, default=5, help="turns of streams (5)")
    options.add_argument("--tokens", type=positive, default=300, help="of a stream (300)")
    given = parse(options, loads=2, messages=60, turns=20, seconds=1.0, rounds=1, tokens=20)
    report = Report("The page")
    with cllm_server("--parallel", str(STREAMS)) as server:
        with Client(HOST, server.port) as client:  # the first request compiles the renderer
            client.post("/page/render", {"markdown": "x"})
        try:
            with chromium() as browser:
                loads(report, browser, server, given)
                frames(report, browser, server, given)
        except BrowserError as error:
            print(f"\nleft out: the browser: {error}")
        watchers(report, server, given)
    report.write(given.json)


if __name__ == "__main__":
    main()
