"""Every option of a cLLM server, in one table."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cllm.option_kinds import (
    choice,
    integer,
    names,
    path,
    seconds,
    secrets,
    size,
    switch,
    text,
)
from cllm.options import OneLineParser, SettingsError, add_arguments, option, options_of, resolve
from cllm.version import __version__

__all__ = ["Settings", "SettingsError", "load_settings", "make_parser"]

MODEL = "Model"
SERVER = "Server"
ENGINE = "Engine"
LIMITS = "Limits and deadlines"
LOGGING = "Logging"
OTHER = "Configuration"

ABOUT = {
    LIMITS: "The most that is allowed of each; past it the answer is the status in brackets\n"
    "or, where no answer is possible, by closing the connection.",
}

_DAY = 86_400.0
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")

EXAMPLES = """\
examples:
  cllm                                     serve a small model that tells stories
  cllm --model qwen3-0.6b-q4_k_m.gguf      serve a real one on http://127.0.0.1:8080
  cllm --model m.gguf --host 0.0.0.0 --parallel 16 --ctx-size 4096
  CLLM_PORT=9000 cllm --config cllm.yaml   the file holds lines such as "max-body: 16M"

Every option has the name shown in [brackets] in the environment and its own name in a YAML file.
The command line wins over the environment, the environment over the file.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """The values from command line, environment and YAML file; see `load_settings`."""

    model: str | None = option(
        None,
        MODEL,
        path(),
        "GGUF file to serve; without it a small model that tells stories is served",
    )
    model_draft: str | None = option(
        None, MODEL, path(),
        "GGUF file of a smaller model with the same vocabulary, which guesses ahead",
    )  # fmt: skip
    chat_template: str | None = option(
        None, MODEL, text(), "Jinja template of conversations, in place of the model's own"
    )
    chat_template_file: str | None = option(None, MODEL, path(), "the same, read from FILE")
    pooling: str = option(
        "auto", MODEL, choice("auto", "none", "mean", "cls", "last", "rank"),
        "how an input's tokens become one vector, or with rank one score, in a model that embeds; "
        "auto: as its file says; a model whose file says nothing of it generates",
    )  # fmt: skip
    expose_model_path: bool = option(
        False, MODEL, switch(), "let /model/info tell the whole path, not only the file's name"
    )

    host: str = option("127.0.0.1", SERVER, text("ADDRESS"), "address to listen on")
    port: int = option(8080, SERVER, integer(0, 65535), "port to listen on; 0 picks a free one")
    workers: int = option(16, SERVER, integer(1, 1024), "threads that handle requests")
    cors_origins: tuple[str, ...] = option(
        (), SERVER, names(), "origins that browsers may call from, or *"
    )
    api_key: tuple[str, ...] | None = option(
        None, SERVER, secrets(),
        "keys of which clients must send one; other users of the machine see command lines, so "
        "prefer a file or the variable",
    )  # fmt: skip
    api_key_file: str | None = option(None, SERVER, path(), "more keys, one a line")

    parallel: int = option(
        8, ENGINE, integer(1, 256), "sequences generated at once; further requests wait"
    )
    ctx_size: int | None = option(
        None, ENGINE, integer(2, 1 << 23, auto=True),
        "tokens per sequence, prompt and answer; auto: what model and --memory-budget allow",
    )  # fmt: skip
    memory_budget: int | None = option(
        None, ENGINE, size(1 << 20, auto=True),
        "bytes that an automatic --ctx-size may use for the key/value cache of all sequences; "
        "auto: 2G, or half of the free memory if that is less",
    )  # fmt: skip
    max_queue: int = option(
        256,
        ENGINE,
        integer(0),
        "requests that may wait for a sequence; past it the client with most waiting gets 429",
    )
    batch_size: int = option(2048, ENGINE, integer(1, 1 << 20), "most tokens in a step")
    ubatch_size: int | None = option(
        None, ENGINE, integer(1, 1 << 20, auto=True),
        "tokens that are evaluated together; auto: 512, or --batch-size if that is less",
    )  # fmt: skip
    max_itl_ms: int | None = option(
        None, ENGINE, integer(1, 60_000, auto=True),
        "milliseconds between two tokens of a stream that reading prompts may lead to; "
        "auto: five times a step without prompts, at least 100, and a second where more prompts "
        "wait than streams run",
    )  # fmt: skip
    cache_ram: int | None = option(
        None, ENGINE, size(0, auto=True),
        "bytes of memory for the prefixes of sequences that made room for others; 0: none; "
        "auto: 1G, or a quarter of the free memory if that is less",
    )  # fmt: skip
    draft_max: int = option(
        32, ENGINE, integer(0, 32),
        "tokens that a sequence may guess ahead, from its own text or by --model-draft; 0: none",
    )  # fmt: skip
    slot_save_path: str | None = option(
        None, ENGINE, path("DIRECTORY"), "existing directory where slots are saved and restored"
    )
    threads: int | None = option(
        None, ENGINE, integer(1, 512, auto=True),
        "threads that generate; auto: one per core, and fewer while other programs need the cores",
    )  # fmt: skip
    threads_batch: int | None = option(
        None, ENGINE, integer(1, 512, auto=True), "threads that read prompts; auto: as --threads"
    )
    n_gpu_layers: int = option(
        0, ENGINE, integer(-1), "layers computed on the GPU; -1: all of them"
    )
    flash_attn: str = option("auto", ENGINE, choice("auto", "on", "off"), "flash attention")
    cache_type_k: str = option("f16", ENGINE, choice(*_CACHE_TYPES), "number format of cached keys")
    cache_type_v: str = option(
        "f16", ENGINE, choice(*_CACHE_TYPES), "number format of cached values"
    )
    kv_unified: bool | None = option(
        None, ENGINE, switch(auto=True),
        "one cache that all sequences share, instead of an equal part for each (slower); "
        "auto: an equal part",
    )  # fmt: skip
    kv_cells: int | None = option(
        None, ENGINE, integer(2, (1 << 31) - 1, auto=True),
        "tokens that a unified cache holds in all; auto: --parallel times --ctx-size",
    )  # fmt: skip
    tune: bool = option(
        False, ENGINE, switch(),
        "measure which threads, batch and cache are fastest, at the first start with a model; "
        "options that are given stay as they are",
    )  # fmt: skip
    mlock: bool = option(False, ENGINE, switch(), "keep the model in memory, never swapped out")
    mmap: bool = option(True, ENGINE, switch(), "map the file into memory instead of reading it")
    extra_bufts: str = option(
        "auto", ENGINE, choice("auto", "on", "off"),
        "llama.cpp's repacked and AMX kernels; auto: used where a trial run survives them",
    )  # fmt: skip

    request_timeout: float = option(
        600.0, LIMITS, seconds(0.1, _DAY), "a generation may take, waiting included (408)"
    )
    max_connections: int = option(
        10_000,
        LIMITS,
        integer(1),
        "open connections; at the limit an idle one is closed for a new one",
    )
    max_connections_per_client: int | None = option(
        None, LIMITS, integer(0, auto=True),
        "open connections of one address, 0: any number; auto: half of --max-connections, "
        "and any number from this machine",
    )  # fmt: skip
    backlog: int = option(1024, LIMITS, integer(1, 65535), "connections not yet accepted")
    max_request_line: int = option(8 << 10, LIMITS, size(14), "request line (414)")
    max_head: int = option(32 << 10, LIMITS, size(18), "request line and header fields (431)")
    max_fields: int = option(100, LIMITS, integer(1), "number of header fields (431)")
    max_body: int = option(16 << 20, LIMITS, size(0), "request body (413)")
    body_memory: int = option(
        256 << 20, LIMITS, size(0), "all request bodies that are not complete, together (503)"
    )
    stream_buffer: int = option(
        1 << 20, LIMITS, size(1 << 10), "unread by a slow client before its stream is cancelled"
    )
    head_timeout: float = option(
        10.0,
        LIMITS,
        seconds(0.05, _DAY),
        "to the first byte of a connection, and from a request's first byte to the end of its head",
    )
    body_timeout: float = option(
        30.0, LIMITS, seconds(0.05, _DAY), "in which a body is slower than --min-rate (408)"
    )
    keep_alive_timeout: float = option(
        75.0, LIMITS, seconds(0.05, _DAY), "between two requests on a connection"
    )
    write_timeout: float = option(
        30.0, LIMITS, seconds(0.05, _DAY), "in which a client reads slower than --min-rate"
    )
    sse_ping: float = option(
        10.0, LIMITS, seconds(0.0, _DAY),
        "a quiet event stream sends a ping this often, so that no proxy cuts it; 0: never",
    )  # fmt: skip
    min_rate: int = option(
        500, LIMITS, size(0),
        "a second that a client must send of a body, and read of a response; 0: any",
    )  # fmt: skip
    grace: float = option(
        30.0, LIMITS, seconds(0.0, _DAY), "for requests in flight when the server stops"
    )

    log_level: str = option(
        "info", LOGGING, choice("debug", "info", "warning", "error"), "least severity that is kept"
    )
    log_file: str | None = option(
        None, LOGGING, path(), "append the log to FILE instead of writing it to standard error"
    )
    log_json: bool = option(False, LOGGING, switch(), "one JSON object a line")
    access_log: bool = option(True, LOGGING, switch(), "one line a request")

    config: str | None = option(None, OTHER, path(), "YAML file of these settings")


def make_parser() -> argparse.ArgumentParser:
    """The command line: every setting in its group, `--version` and `--help`."""
    parser = OneLineParser(
        prog="cllm",
        description="Serves a GGUF language model over HTTP.",
        epilog=EXAMPLES,
        usage="cllm [--model FILE] [--host ADDRESS] [--port N] [OPTIONS]",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_PrintVersions, help="print the versions and exit")
    add_arguments(parser, options_of(Settings), ABOUT)
    return parser


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Command line over CLLM_* variables over `--config` file over defaults.

    Raises SettingsError: one line that names the source, the value and what was expected.
    """
    return resolve(Settings, make_parser(), argv, environ)


def versions() -> str:
    """cLLM's, llama-cpp-python's and Python's versions in one line."""
    from importlib import metadata
    from platform import python_version

    try:
        llama = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        llama = "not installed"
    return f"cllm {__version__}, llama-cpp-python {llama}, Python {python_version()}"


class _PrintVersions(argparse.Action):
    """`--version`: like argparse's own, but looks up the versions only when needed."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(versions())
        parser.exit()


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Options in one column; `--[no-]name` for switches; examples stay unchanged."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)  # --ctx-size stays whole

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0].replace("--", "--[no-]", 1)
        return super()._format_action_invocation(action)
