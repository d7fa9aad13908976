"""Every option of a cLLM server, in one table; over 400 lines: each option is declared once."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cllm.llama_names import from_variables, in_own_words
from cllm.option_kinds import (
    choice,
    gpu_layers,
    integer,
    json_object,
    names,
    number,
    pairs,
    path,
    paths,
    quoted,
    seconds,
    secrets,
    shares,
    size,
    switch,
    text,
)
from cllm.option_sources import (
    OneLineParser,
    SettingsError,
    add_arguments,
    option,
    options_of,
    resolve,
)
from cllm.version import __version__

__all__ = ["Settings", "SettingsError", "load_settings", "make_parser"]

MODEL = "Model"
SERVER = "Server"
ENGINE = "Engine"
DEVICES = "Devices"
POSITIONS = "Positions (RoPE)"
LIMITS = "Limits and deadlines"
LOGGING = "Logging"
OTHER = "Configuration"

ABOUT = {
    LIMITS: "Upper bounds. Beyond a bound the client gets the HTTP status in parentheses or,\n"
    "where no response is possible, the connection is closed.",
}

_DAY = 86_400.0
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")

EXAMPLES = """\
examples:
  cllm                                     serve the built-in model, which writes short stories
  cllm --model qwen3-0.6b-q4_k_m.gguf      serve your own model on http://127.0.0.1:8080
  cllm --model m.gguf --host 0.0.0.0 --parallel 16 --ctx-size 4096
  cllm key new alice                       make an API key for --api-keys-file
  CLLM_PORT=9000 cllm --config cllm.yaml   a YAML file with lines such as "max-body: 16M"

[Brackets] hold the environment variable of an option and its default. A YAML file uses the names
of the options. The command line overrides the environment, the environment overrides the file.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """The values from command line, environment and YAML file; see `load_settings`."""

    model: str | None = option(
        None,
        MODEL,
        path(),
        "GGUF file to serve; without it, a small built-in model that writes short stories",
    )
    model_draft: str | None = option(
        None, MODEL, path(),
        "GGUF file of a smaller model with the same vocabulary, for speculative decoding",
    )  # fmt: skip
    alias: tuple[str, ...] = option(
        (), MODEL, names(), "names under which clients see the model; without, the file's name"
    )
    tags: tuple[str, ...] = option((), MODEL, names(), "words about the model in /v1/models")
    chat_template: str | None = option(
        None, MODEL, text(),
        "chat template that replaces the one in the model file: Jinja, or the name of one that "
        "llama.cpp has built in, such as chatml",
    )  # fmt: skip
    chat_template_file: str | None = option(None, MODEL, path(), "read the chat template from FILE")
    chat_template_kwargs: Mapping[str, Any] | None = option(
        None, MODEL, json_object(), "variables of the chat template, below those of a request"
    )
    reasoning: str = option(
        "auto", MODEL, choice("auto", "on", "off"),
        "whether the model thinks first where a request does not say; auto: as the chat template "
        "does by itself",
    )  # fmt: skip
    reasoning_budget: int = option(
        -1, MODEL, integer(-1), "tokens of thoughts where a request does not say; -1: any number"
    )
    reasoning_format: str = option(
        "auto", MODEL, choice("auto", "deepseek", "none"),
        "where thoughts stand: in a field of their own (auto and deepseek are the same), or as "
        "they come in the text (none)",
    )  # fmt: skip
    sampling: Mapping[str, Any] | None = option(
        None, MODEL, pairs(),
        "sampling fields that apply where a request does not give them, such as "
        "temperature=0.6,top_k=20",
    )  # fmt: skip
    pooling: str = option(
        "auto", MODEL, choice("auto", "none", "mean", "cls", "last", "rank"),
        "how an embedding model computes the vector of an input from those of its tokens; rank: "
        "the score of a reranker; none: one vector per token; auto: as the model file says, and "
        "a file that does not say generates text",
    )  # fmt: skip
    lora: tuple[str, ...] = option(
        (), MODEL, quoted("FILE[:SCALE],…", files=True),
        "GGUF files of LoRA adapters, and the scale that applies where a request does not say",
    )  # fmt: skip
    lora_init_without_apply: bool = option(False, MODEL, switch(), "load the adapters with scale 0")
    expose_model_path: bool = option(
        False,
        MODEL,
        switch(),
        "show the full path of the model file in /model/info, not only its name",
    )

    host: str = option("127.0.0.1", SERVER, text("ADDRESS"), "address to listen on")
    port: int = option(8080, SERVER, integer(0, 65535), "port to listen on; 0: any free port")
    workers: int = option(16, SERVER, integer(1, 1024), "threads that process HTTP requests")
    page: bool = option(
        True, SERVER, switch(), "serve the page for browsers at /, with chat and monitor"
    )
    cors_origins: tuple[str, ...] = option(
        (), SERVER, names(),
        "origins whose pages may call from a browser (CORS), or * for all, or localhost for all "
        "of this machine",
    )  # fmt: skip
    cors_credentials: bool = option(
        False, SERVER, switch(), "let those pages send requests in credentials mode"
    )
    metrics: bool = option(True, SERVER, switch(), "serve /metrics")
    slots: bool = option(True, SERVER, switch(), "serve /slots, which shows the state of slots")
    api_key: tuple[str, ...] | None = option(
        None, SERVER, secrets(),
        "API keys; a request must send one of them; other users of the machine can see command "
        "lines, so prefer the file or the variable",
    )  # fmt: skip
    api_key_file: str | None = option(
        None, SERVER, path(), "file of further API keys, one per line"
    )
    tls_cert: tuple[str, ...] = option(
        (), SERVER, paths(),
        "serve HTTPS with this certificate and its chain (PEM); several for several host names",
    )  # fmt: skip
    tls_key: tuple[str, ...] = option(
        (), SERVER, paths(), "private key of each --tls-cert, in the same order (PEM)"
    )
    tls_client_ca: str | None = option(
        None, SERVER, path(), "accept client certificates that these authorities signed (PEM)"
    )
    tls_client_auth: str = option(
        "required", SERVER, choice("required", "optional"),
        "whether clients need a certificate where --tls-client-ca is given",
    )  # fmt: skip
    tls_self_signed: bool = option(
        False, SERVER, switch(),
        "serve HTTPS with a certificate made for this machine, for a first try",
    )  # fmt: skip
    api_keys_file: str | None = option(
        None, SERVER, path(),
        "TOML file of keys, each with a name and limits; read again on SIGHUP; the command "
        "cllm key new NAME makes a key",
    )  # fmt: skip
    trusted_proxies: tuple[str, ...] = option(
        (), SERVER, names(),
        "networks of proxies, such as 10.0.0.0/8, whose X-Forwarded-For and Forwarded fields name "
        "the client",
    )  # fmt: skip
    proxy_protocol: bool = option(
        False, SERVER, switch(),
        "expect a PROXY header (version 2) at the start of each connection; only --trusted-proxies "
        "can then connect",
    )  # fmt: skip
    share_prefixes: str = option(
        "auto", SERVER, choice("auto", "all", "tenant"),
        "whose requests share cached prefixes: all, or only those of one key or client address; "
        "auto: tenant with --api-keys-file, else all",
    )  # fmt: skip

    parallel: int = option(
        8, ENGINE, integer(1, 256), "sequences generated at the same time; further requests wait"
    )
    keep_sequences: int | None = option(
        None, ENGINE, integer(0, 255, auto=True),
        "further sequences that stay in the cache while they rest, so that more conversations than "
        "--parallel return without a copy; auto: as many as --parallel with --kv-unified, a "
        "model with attention only and neither --kv-cells nor --model-draft, else 0",
    )  # fmt: skip
    ctx_size: int | None = option(
        None, ENGINE, integer(2, 1 << 23, auto=True),
        "tokens per sequence, prompt and answer together; auto: as many as the model and "
        "--memory-budget allow",
    )  # fmt: skip
    ctx_total: int | None = option(
        None, ENGINE, integer(2, 1 << 31, auto=True),
        "tokens of all sequences together, in place of --ctx-size: each gets its part, or all of "
        "them with --kv-unified",
    )  # fmt: skip
    context_shift: bool = option(
        False, ENGINE, switch(),
        "let a text that fills its context lose old tokens and go on; without, it ends there",
    )  # fmt: skip
    reproducible: bool = option(
        False, ENGINE, switch(),
        "let the same seed give the same text, whatever else runs; slower",
    )  # fmt: skip
    memory_budget: int | None = option(
        None, ENGINE, size(1 << 20, auto=True),
        "bytes for the key/value cache of all sequences where --ctx-size is auto; "
        "auto: 2G, or half of the free memory if that is less",
    )  # fmt: skip
    max_queue: int = option(
        256,
        ENGINE,
        integer(0),
        "requests that may wait while --parallel others run; beyond it, the newest request of the "
        "client with the most waiting requests gets 429",
    )
    batch_size: int = option(
        2048, ENGINE, integer(1, 1 << 20), "maximum number of tokens in a step"
    )
    ubatch_size: int | None = option(
        None, ENGINE, integer(1, 1 << 20, auto=True),
        "tokens that llama.cpp evaluates at once (its physical batch); auto: 512, or --batch-size "
        "if that is less",
    )  # fmt: skip
    max_itl_ms: int | None = option(
        None, ENGINE, integer(1, 60_000, auto=True),
        "upper bound in milliseconds on the gap between two tokens of a stream while prompts are "
        "read; auto: five times a step without prompts, at least 100, and up to 1000 while more "
        "prompts wait than streams run",
    )  # fmt: skip
    cache_ram: int | None = option(
        None, ENGINE, size(0, auto=True),
        "bytes of host memory for prefixes whose slot was given to another sequence; 0: none; "
        "auto: 1G, or a quarter of the free memory if that is less",
    )  # fmt: skip
    cache_disk: str | None = option(
        None, ENGINE, path("DIRECTORY"),
        "directory for prefixes that outlive the process; made if it is missing; what users write "
        "lies there",
    )  # fmt: skip
    cache_disk_size: int | None = option(
        None, ENGINE, size(1 << 20, auto=True),
        "bytes of the files in --cache-disk; the least recently used go first; auto: 8G, or a "
        "quarter of the free space if that is less",
    )  # fmt: skip
    draft_max: int = option(
        32, ENGINE, integer(0, 32),
        "maximum number of draft tokens of a sequence in a step, from its own text or from "
        "--model-draft; 0: no speculation",
    )  # fmt: skip
    spec_synth_rates: tuple[float, ...] = option(
        (), ENGINE, shares(),
        "for benchmarks: probabilities of accepting the first, the first two, … tokens of a draft, "
        "whatever the model would choose; the texts have no meaning",
    )  # fmt: skip
    slot_save_path: str | None = option(
        None, ENGINE, path("DIRECTORY"), "existing directory for saved slots"
    )
    threads: int | None = option(
        None, ENGINE, integer(1, 512, auto=True),
        "threads that generate; auto: one per core, fewer while other programs need the cores",
    )  # fmt: skip
    threads_batch: int | None = option(
        None, ENGINE, integer(1, 512, auto=True), "threads that read prompts; auto: the same number"
    )
    n_gpu_layers: int | None = option(
        None, DEVICES, gpu_layers(),
        "layers to compute on the GPU, or all; auto: all if llama.cpp was built for a GPU",
    )  # fmt: skip
    split_mode: str = option(
        "layer", DEVICES, choice("none", "layer", "row", "tensor"),
        "how several GPUs divide the model; none: only one is used",
    )  # fmt: skip
    tensor_split: tuple[float, ...] = option(
        (), DEVICES, shares(), "share of the model for each GPU, such as 3,1"
    )
    main_gpu: int = option(
        0, DEVICES, integer(0),
        "GPU that is used alone, or for intermediate results with --split-mode row",
    )  # fmt: skip
    kv_offload: bool = option(True, DEVICES, switch(), "keep the key/value cache on the GPU")
    override_tensor: tuple[str, ...] = option(
        (), DEVICES, quoted("PATTERN=BUFFER,…"),
        "buffer type of the weights whose names match a regular expression",
    )  # fmt: skip
    cpu_moe: bool = option(False, DEVICES, switch(), "keep the weights of all experts on the CPU")
    n_cpu_moe: int = option(
        0, DEVICES, integer(0, 1024),
        "keep the weights of the experts of the first N layers on the CPU",
    )  # fmt: skip
    numa: str = option(
        "off", DEVICES, choice("off", "distribute", "isolate", "numactl"),
        "place threads on the nodes of a NUMA machine: on all, on the first one's, or as numactl "
        "says",
    )  # fmt: skip
    rope_scaling: str = option(
        "auto", POSITIONS, choice("auto", "none", "linear", "yarn"),
        "how positions beyond the trained length are scaled; auto: as the model file says",
    )  # fmt: skip
    rope_scale: float | None = option(
        None, POSITIONS, number(zero_is_auto=True),
        "factor by which the context is longer than the model was trained for",
    )  # fmt: skip
    rope_freq_base: float | None = option(
        None, POSITIONS, number(zero_is_auto=True), "base frequency"
    )
    rope_freq_scale: float | None = option(
        None, POSITIONS, number(zero_is_auto=True), "1 divided by --rope-scale, in its place"
    )
    yarn_orig_ctx: int | None = option(
        None, POSITIONS, integer(0, (1 << 31) - 1, auto=True),
        "YaRN: tokens that the model was trained for; 0 is auto",
    )  # fmt: skip
    yarn_ext_factor: float | None = option(
        None, POSITIONS, number(), "YaRN: share of extrapolation; 0: only interpolation"
    )
    yarn_attn_factor: float | None = option(
        None, POSITIONS, number(), "YaRN: factor of the attention's magnitude"
    )
    yarn_beta_slow: float | None = option(
        None, POSITIONS, number(), "YaRN: rotations below which a dimension is interpolated"
    )
    yarn_beta_fast: float | None = option(
        None, POSITIONS, number(), "YaRN: rotations above which a dimension is extrapolated"
    )
    override_kv: tuple[str, ...] = option(
        (), MODEL, quoted("KEY=TYPE:VALUE,…"),
        "metadata in place of the model file's; types: int, float, bool, str",
    )  # fmt: skip
    flash_attn: str = option("auto", ENGINE, choice("auto", "on", "off"), "flash attention")
    cache_type_k: str = option("f16", ENGINE, choice(*_CACHE_TYPES), "number format of cached keys")
    cache_type_v: str = option(
        "f16", ENGINE, choice(*_CACHE_TYPES), "number format of cached values"
    )
    kv_unified: bool | None = option(
        None, ENGINE, switch(auto=True),
        "one key/value cache that all sequences share, instead of an equal part for each; faster "
        "if requests begin with the same long text; auto: an equal part for each",
    )  # fmt: skip
    kv_cells: int | None = option(
        None, ENGINE, integer(2, (1 << 31) - 1, auto=True),
        "size of a unified cache in tokens; auto: --parallel times --ctx-size",
    )  # fmt: skip
    tune: bool = option(
        False, ENGINE, switch(),
        "at the first start with a model, measure which threads, batch and cache are fastest; "
        "options that are given are kept",
    )  # fmt: skip
    mlock: bool = option(
        False, ENGINE, switch(), "lock the model into memory, so that it is not swapped out"
    )
    mmap: bool = option(True, ENGINE, switch(), "map the file into memory instead of reading it")
    direct_io: bool = option(
        False, ENGINE, switch(),
        "read the file past the system's cache, where that is possible; overrides --mmap",
    )  # fmt: skip
    swa_full: bool = option(
        True, ENGINE, switch(),
        "keep all tokens of layers with sliding-window attention, not only the window; more "
        "prefixes can be reused",
    )  # fmt: skip
    extra_bufts: str = option(
        "auto", ENGINE, choice("auto", "on", "off"),
        "llama.cpp's repacked and AMX kernels; auto: on unless they crash a trial run",
    )  # fmt: skip

    request_timeout: float = option(
        600.0,
        LIMITS,
        seconds(0.1, _DAY),
        "time for a generation, including the time in the queue (408)",
    )
    max_connections: int = option(
        10_000,
        LIMITS,
        integer(1),
        "open connections; at the limit, an idle one is closed for a new one",
    )
    max_connections_per_client: int | None = option(
        None, LIMITS, integer(0, auto=True),
        "open connections of one client address; 0: no limit; auto: half of --max-connections, "
        "and no limit for this machine",
    )  # fmt: skip
    backlog: int = option(
        1024, LIMITS, integer(1, 65535), "connections that the kernel holds until they are accepted"
    )
    max_request_line: int = option(8 << 10, LIMITS, size(14), "length of the request line (414)")
    max_head: int = option(
        32 << 10, LIMITS, size(18), "request line and header fields together (431)"
    )
    max_fields: int = option(100, LIMITS, integer(1), "number of header fields (431)")
    max_body: int = option(16 << 20, LIMITS, size(0), "length of a request body, decoded (413)")
    body_memory: int = option(
        256 << 20, LIMITS, size(0), "memory for all request bodies that are not complete (503)"
    )
    response_memory: int = option(
        64 << 20, LIMITS, size(0), "memory for the responses that clients can continue; 0: none"
    )
    stream_buffer: int = option(
        1 << 20, LIMITS, size(1 << 10), "unread bytes of a stream, beyond which it is cancelled"
    )
    head_timeout: float = option(
        10.0,
        LIMITS,
        seconds(0.05, _DAY),
        "time to the first byte of a connection, and from a request's first byte to the end of its "
        "head (408)",
    )
    body_timeout: float = option(
        30.0,
        LIMITS,
        seconds(0.05, _DAY),
        "time for which a body may arrive slower than --min-rate (408)",
    )
    keep_alive_timeout: float = option(
        75.0,
        LIMITS,
        seconds(0.05, _DAY),
        "time for which a connection may be idle between two requests",
    )
    write_timeout: float = option(
        30.0,
        LIMITS,
        seconds(0.05, _DAY),
        "time for which a client may read a response slower than --min-rate",
    )
    sse_ping: float = option(
        10.0, LIMITS, seconds(0.0, _DAY),
        "time between pings on a quiet event stream, which keep proxies from closing it; 0: none",
    )  # fmt: skip
    min_rate: int = option(
        500, LIMITS, size(0),
        "bytes per second that a client must send of a body and read of a response; 0: one byte "
        "per timeout is enough",
    )  # fmt: skip
    grace: float = option(
        30.0,
        LIMITS,
        seconds(0.0, _DAY),
        "time for requests in flight to finish when the server stops",
    )

    sleep_idle_seconds: float = option(
        0.0, LIMITS, seconds(0.0, _DAY),
        "time without a request after which the model is unloaded until the next one; 0: never",
    )  # fmt: skip

    log_level: str = option(
        "info", LOGGING, choice("debug", "info", "warning", "error"), "lowest severity to log"
    )
    log_file: str | None = option(
        None, LOGGING, path(), "append the log to FILE instead of standard error"
    )
    log_json: bool = option(False, LOGGING, switch(), "log one JSON object per line")
    access_log: bool = option(True, LOGGING, switch(), "log one line per request")

    config: str | None = option(None, OTHER, path(), "YAML file with these settings")


def make_parser() -> argparse.ArgumentParser:
    """The command line: every setting in its group, `--version` and `--help`."""
    parser = OneLineParser(
        prog="cllm",
        description="Serve a GGUF language model over HTTP.",
        epilog=EXAMPLES,
        usage="cllm [--model FILE] [--host ADDRESS] [--port N] [OPTIONS]",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_PrintVersions, help="print the versions and exit")
    add_arguments(parser, options_of(Settings), ABOUT)
    return parser


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Command line over CLLM_* and LLAMA_ARG_* variables over `--config` file over defaults.

    Raises SettingsError: one line that names the source, the value and what was expected.
    """
    own, below = in_own_words(argv), from_variables(environ)
    return resolve(Settings, make_parser(), own, environ, below=below)


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
