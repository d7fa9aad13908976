"""Python's processor time for one streamed chat token, from the request to the event's bytes.

The API's handler gets requests and this process reads their streams, without sockets. Counted is
processor time: of the engine thread without llama_decode (scheduler and sampling), and of the calls
that take requests and return events. Prints microseconds a token. What the thread of masks takes
while llama_decode runs is printed too, and not part of the sum.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from cllm.api import Service, create_handler
from cllm.engine import Engine
from cllm.engine.llama import Batch, Context
from cllm.http import BodyStream, DeferredResponse, HttpHandler, HttpRequest, HttpResponse
from cllm.models import demo_path

LIMIT = 100.0  # µs a token may cost
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of some days",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


class EngineClock:
    """CPU seconds of the engine's thread, without those of llama_decode."""

    def __init__(self) -> None:
        self._decoding = 0.0
        decode = Context.decode

        def timed(context: Context, batch: Batch, count: int) -> int:
            begun = time.thread_time()
            try:
                return decode(context, batch, count)
            finally:
                self._decoding += time.thread_time() - begun

        setattr(Context, "decode", timed)  # noqa: B010 - no name that a type checker would see

    def read(self) -> float:
        """Seconds so far."""
        return _cpu_s("cllm-engine") - self._decoding


def _cpu_s(name: str) -> float:
    """CPU seconds of the thread with this name, if there is one."""
    idents = [each.ident for each in threading.enumerate() if each.name == name]
    clocks = [time.pthread_getcpuclockid(ident) for ident in idents if ident is not None]
    return sum(time.clock_gettime(clock) for clock in clocks)


class Reader:
    """Sends requests to a handler, a fixed number at a time, and reads their streams."""

    def __init__(self, handler: HttpHandler) -> None:
        self._handler = handler
        self._woken: SimpleQueue[tuple[BodyStream, list[bytes]]] = SimpleQueue()
        self.asking = 0.0  # CPU seconds: schema, template, tokens, grammar, submission
        self.taking = 0.0  # parser and events

    def run(self, bodies: list[dict[str, Any]], at_a_time: int) -> int:
        """Answer all of them; return the number of tokens generated."""
        waiting, running, tokens = list(bodies), 0, 0
        while waiting or running:
            while waiting and running < at_a_time:
                self._ask(waiting.pop())
                running += 1
            stream, pieces = self._woken.get()
            begun = time.thread_time()
            taken = stream.take()
            self.taking += time.thread_time() - begun
            pieces += taken
            if taken and taken[-1].endswith(b"data: [DONE]\n\n"):
                running -= 1
                tokens += _completion_tokens(pieces)
        return tokens

    def _ask(self, body: dict[str, Any]) -> None:
        path, data = "/v1/chat/completions", json.dumps(body).encode()
        begun = time.thread_time()
        answer = self._handler.handle_request(HttpRequest("POST", path, path, body=data))
        self.asking += time.thread_time() - begun
        if isinstance(answer, DeferredResponse):  # its constraint is compiled first
            given = threading.Event()
            answer.attach(given.set)
            given.wait()
            assert answer.response is not None, answer.cancel_reason
            answer = answer.response
        assert isinstance(answer, HttpResponse) and isinstance(answer.body, BodyStream), answer
        stream, pieces = answer.body, list[bytes]()
        stream.attach(lambda: self._woken.put((stream, pieces)))


def _completion_tokens(pieces: list[bytes]) -> int:
    events = b"".join(pieces).split(b"\n\n")
    counted = json.loads(events[-3].removeprefix(b"data: "))  # then come [DONE] and nothing
    return int(counted["usage"]["completion_tokens"])


def measure(
    clock: EngineClock, reader: Reader, bodies: list[dict[str, Any]], streams: int
) -> float:
    """Run the requests, print the times of a token, and return their sum."""
    reader.asking = reader.taking = 0.0
    begun, masks = clock.read(), _cpu_s("cllm-masks")
    tokens = reader.run(bodies, streams)
    engine, masks = clock.read() - begun, _cpu_s("cllm-masks") - masks
    parts = {
        "request to prompt": reader.asking,
        "scheduler, sampling": engine,
        "parser, events": reader.taking,
    }
    for name, seconds in parts.items():
        print(f"  {name:20} {seconds / tokens * 1e6:6.1f} µs")
    total = sum(parts.values()) / tokens * 1e6
    print(f"  {'together':20} {total:6.1f} µs a token, of {tokens} tokens")
    print(f"  {'masks, aside':20} {masks / tokens * 1e6:6.1f} µs")
    return total


def main() -> int:
    """Measure; the exit status is 1 if a token costs more than the target."""
    parser = argparse.ArgumentParser(prog=sys.argv[0], description=__doc__)
    parser.add_argument("--streams", type=int, default=8, help="requests at a time")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128, help="of each request, at most")
    options = parser.parse_args()
    # The server's workers are not the main thread, on which Ctrl-C has to be kept off.
    with ThreadPoolExecutor(1, "bench") as pool:
        most = pool.submit(_measure_all, options).result()
    print(f"at most {most:.1f} µs; the limit is {LIMIT:.0f} µs")
    return int(most > LIMIT)


def _measure_all(options: argparse.Namespace) -> float:
    """Microseconds a token where it takes the most of them."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Tell me a story about a fox and a lantern."}],
        "max_tokens": options.tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    clock = EngineClock()
    most = 0.0
    with Engine.load(demo_path(), parallel=options.streams) as engine:
        reader = Reader(create_handler(Service(engine)))
        for name, more in (
            ("greedy", {"temperature": 0}),
            ("sampled", {}),
            ("sampled, tools offered", {"tools": [TOOL], "ignore_eos": False}),
        ):
            bodies = [{**body, **more, "seed": seed} for seed in range(options.requests)]
            reader.run(bodies[:1], 1)  # compiles grammars, fills caches
            print(f"{name}, {options.streams} streams:")
            most = max(most, measure(clock, reader, bodies, options.streams))
    return most
