"""The output while the server starts: the progress of loading, then the banner."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from cllm.version import __version__

if TYPE_CHECKING:
    from cllm.engine.info import ModelInfo
    from cllm.engine.layout.tuning import Tuning
    from cllm.option_table import Settings

log = logging.getLogger("cllm.main")

Report = Callable[[float], None]

_STEP = 10  # percent between two lines about loading
_PAUSE = 1.0  # seconds between two lines about loading; a quick load prints none


def calm_collector() -> None:
    """Keep the garbage collector away from the objects of the loaded program.

    There are some 75 000 of them. A full collection holds the interpreter lock for 20 ms or more,
    on whatever thread it begins, and all streams wait.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def showing_progress(settings: Settings, also: Report) -> Iterator[tuple[Report, Report]]:
    """Functions that take the fractions, 0 … 1, of reading and then of measuring.

    A terminal shows them as a bar. Elsewhere reading is logged every 10 %, and at most once a
    second; measuring has its own log lines. The fraction of reading is passed on to `also`.
    """
    if sys.stderr.isatty() and not settings.log_json:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        tqdm.monitor_interval = 0  # tqdm starts no thread
        with logging_redirect_tqdm(), tqdm(
            total=1.0, desc="loading", leave=False, file=sys.stderr,
            bar_format="{desc} {percentage:3.0f} % |{bar}| {elapsed}",
            # tqdm shows nothing if a terminal does not know its size.
            ncols=min(100, shutil.get_terminal_size().columns), nrows=20,
        ) as bar:  # fmt: skip

            def show(word: str, fraction: float) -> None:
                bar.set_description_str(word, refresh=False)
                bar.update(fraction - bar.n)

            def show_read(fraction: float) -> None:
                show("loading", fraction)
                also(fraction)

            yield show_read, partial(show, "measuring")
        return

    shown, shown_at = 0.0, time.monotonic()

    def tell(fraction: float) -> None:
        nonlocal shown, shown_at
        also(fraction)
        percent, now = fraction * 100, time.monotonic()
        if percent // _STEP > shown // _STEP and now - shown_at >= _PAUSE:
            log.info("loading the model: %d %%", percent)
            shown, shown_at = percent, now

    yield tell, lambda _: None


def warn_of_strangers(host: str) -> None:
    """Warn that others may use the model, if the port is reachable and no key is required."""
    if not all(_is_loopback(name.strip()) for name in host.split(",")):
        log.warning(
            "anyone who can reach %s can use the model; require a key with --api-keys-file",
            host or "this machine",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def announce(
    settings: Settings,
    url: str,
    info: ModelInfo,
    endpoints: Sequence[tuple[str, str]],
    trust: str = "",
) -> None:
    """Announce once what is served and where: a banner, and a log line if the log is elsewhere.

    endpoints: (method, path) of each; the banner has the paths, GET / the rest. trust: the file of
    a self-signed certificate.
    """
    if settings.log_file is not None or settings.log_json:
        log.info(
            "serving %s on %s: %s, %s, %d threads",
            info.name, url, ability(info), room(settings, info), info.context.threads,
        )  # fmt: skip
    if settings.log_json and settings.log_file is None:
        return
    try:
        print(banner(settings, url, info, endpoints, trust), flush=True)
    except BrokenPipeError:
        # The reader of our output is gone; a later flush at exit must not report it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def banner(
    settings: Settings,
    url: str,
    info: ModelInfo,
    endpoints: Sequence[tuple[str, str]],
    trust: str = "",
) -> str:
    """URL, model, sequences, context and the reason for its size, threads, endpoints."""
    context = info.context
    asks_for_key = any((settings.api_key, settings.api_key_file, settings.api_keys_file))
    everywhere = (
        " and all other addresses of this machine" if settings.host in ("0.0.0.0", "::") else ""
    )
    lines = [
        "",
        f"  cLLM {__version__} serves {url}{everywhere}",
        "",
        f"  model      {info.name}: {info.architecture}, {_count(info.parameters)} parameters, "
        f"{info.quantization_type}, {_bytes(info.size_bytes)}",
        *([f"  draft      {context.model_draft}"] if context.model_draft else []),
        f"  use        {ability(info)}",
        f"  context    {room(settings, info)}",
        f"  threads    {context.threads} for generation, {context.threads_batch} for prompts, "
        f"{settings.workers} for HTTP",
    ]
    if context.tuning is not None:
        lines.append(f"  tuned      {tuned(context.tuning)}")
    lines += _folded("endpoints", list(dict.fromkeys(path for _, path in endpoints)))
    if settings.model is None:
        lines += [
            "",
            "  This is the built-in model. It writes short stories in English and Chinese.",
            "  To serve another model, add:  --model FILE.gguf",
        ]
    path, body = _EXAMPLES[info.capability]
    key = " -H 'Authorization: Bearer KEY'" if asks_for_key else ""
    if trust:
        lines += ["", f"  The certificate is self-signed. Clients must trust {trust}"]
        key = f" --cacert {trust}{key}"
    lines += ["", f"  curl {url}{path}{key} -d '{body}'", ""]
    return "\n".join(lines)


# ModelInfo.capability -> path and body of a request for such a model.
_EXAMPLES = {
    "completion": ("/generate", '{"prompt":"Once upon a time"}'),
    "embedding": ("/embedding", '{"content":"Once upon a time"}'),
    "rerank": ("/rerank", '{"query":"who?","documents":["a queen","a tree"]}'),
}


def ability(info: ModelInfo) -> str:
    """The use of the model."""
    if info.pooling is None:
        return "generates text"
    if info.pooling == "rank":
        return "reranks documents"
    return f"computes embeddings of {info.embedding_size} dimensions, pooling {info.pooling}"


def room(settings: Settings, info: ModelInfo) -> str:
    """Tokens per request, number of requests, and the reason."""
    context = info.context
    if info.pooling is not None:
        return (
            f"inputs of up to {context.ctx_size} tokens "
            f"(the model was trained for {info.max_sequence_length})"
        )
    return (
        f"{context.parallel} sequences of {context.ctx_size} tokens "
        f"({chosen_because(settings, info)})"
    )


def chosen_because(settings: Settings, info: ModelInfo) -> str:
    """The reason for a sequence's number of tokens, and the size of the cache."""
    context = info.context
    cache = f"{_bytes(context.kv_bytes)} of key/value cache"
    if settings.ctx_size is not None:
        return f"set by --ctx-size; {cache}"
    if context.ctx_size >= info.max_sequence_length:
        return f"what the model was trained for; {cache}"
    if settings.kv_cells is not None:
        return f"limited by --kv-cells; {cache}"
    budget = "--memory-budget" if settings.memory_budget is not None else "the memory budget"
    return f"of {info.max_sequence_length}, limited by {budget}; {cache}"


def tuned(tuning: Tuning) -> str:
    """The options that measuring chose, by how much they are faster, and when that was."""
    when = "from an earlier start" if tuning.cached else f"measured in {tuning.seconds:g} s"
    if not tuning.chosen:
        return f"the defaults are fastest ({when})"
    flags = " ".join(_as_given(name, value) for name, value in tuning.chosen.items())
    gains = ", ".join(f"{part} {ratio - 1:+.0%}" for part, ratio in tuning.speedup.items())
    return f"{flags} (speed: {gains}; {when})"


def _as_given(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def _folded(title: str, items: Sequence[str], width: int = 88) -> list[str]:
    lines, line = [], ""
    for item in items:
        if line and len(line) + 2 + len(item) > width:
            lines.append(line)
            line = ""
        line += f"  {item}" if line else item
    lines.append(line)
    return [f"  {title if i == 0 else '':9}  {text}" for i, text in enumerate(lines)]


def _count(number: int) -> str:
    return _scaled(number, 1000, ("", " K", " M", " B", " T"))


def _bytes(number: int) -> str:
    return _scaled(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while number >= base and power < len(units) - 1:
        number /= base
        power += 1
    return f"{number:.3g}{units[power]}" if number < 100 else f"{number:.0f}{units[power]}"
