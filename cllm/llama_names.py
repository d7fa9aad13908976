"""llama-server's options, as second names of cLLM's: its flags and its LLAMA_ARG_* variables.

Source: llama.cpp, common/arg.cpp (build b1-0c1e570). A flag that both servers have under one name
and with one meaning needs no entry here. A flag whose number means something else here is refused
with the number to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cllm.option_kinds import did_you_mean, shown
from cllm.option_sources import SettingsError

PREFIX = "LLAMA_ARG_"
_KEY = "LLAMA_API_KEY"
_ON = {"on", "enabled", "true", "1"}
_OFF = {"off", "disabled", "false", "0"}

Words = list[str]
"""Words of cLLM's command line."""


@dataclass(frozen=True, slots=True)
class Name:
    """A flag of llama-server: how many values it takes, and what it is here.

    words: cLLM's words for a value, None where the flag has no value here. Raises ValueError with
    the reason and the remedy.
    """

    takes: int
    words: Callable[[str], Words]


def _same(option: str) -> Name:
    return Name(1, lambda value: [f"{option}={value}"])


def _switch(option: str) -> Name:
    return Name(0, lambda value: [option])


def _sampling(field: str) -> Name:
    return Name(1, lambda value: [f"--sampling={field}={value}"])


def _ignored(takes: int) -> Name:
    return Name(takes, lambda value: [])


def _refused(takes: int, reason: str) -> Name:
    def words(value: str) -> Words:
        raise ValueError(reason)

    return Name(takes, words)


def _unlike(option: str, *, unless: str) -> Name:
    """A number of this option, where one of llama-server's means the option's default."""
    return Name(1, lambda value: [] if value == unless else [f"{option}={value}"])


def _cache_ram(value: str) -> Words:
    return ["--cache-ram=auto" if value == "-1" else f"--cache-ram={value}M"]


def _flash_attention(value: str) -> Words:
    word = value.lower()
    word = "on" if word in _ON else "off" if word in _OFF else word
    return [f"--flash-attn={word}"]


def _load_mode(value: str) -> Words:
    modes: Mapping[str, Words] = {
        "auto": [],
        "none": ["--no-mmap"],
        "mmap": ["--mmap"],
        "mlock": ["--no-mmap", "--mlock"],
        "mmap+mlock": ["--mmap", "--mlock"],
        "dio": ["--direct-io"],
    }
    if value not in modes:
        raise ValueError(f"expected one of {', '.join(modes)}")
    return modes[value]


def _scaled(value: str) -> Words:
    for part in value.split(","):
        try:
            float(part.rpartition(":")[2])
        except ValueError:
            raise ValueError("expected FILE:SCALE, separated by commas") from None
    return [f"--lora={value}"]


def _drafts(value: str) -> Words:
    return [f"--draft-max={min(_whole(value), 32)}"]


def _whole(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError("expected a whole number") from None


def _speculation(value: str) -> Words:
    return ["--draft-max=0"] if value == "none" else []


_NO_IMAGES = "images and sounds are not supported"
_NO_HUB = "cLLM does not download models; download the file and give it with --model"
_NO_ROUTER = "one server serves one model; start one for each"
_NO_SELF_EXTEND = "cLLM does not group positions; give --rope-scaling and --rope-scale"
_NO_DEVICES = "cLLM uses all devices; choose with --split-mode, --main-gpu and --tensor-split"
_NO_CONTROL = "control vectors are not supported"
_NO_TOOLS = "cLLM runs no tools itself; clients do"

# Flags, without the ones of the same name and meaning.
_FLAGS: dict[tuple[str, ...], Name] = {
    ("-m",): _same("--model"),
    ("-a",): _same("--alias"),
    ("-c",): _unlike("--ctx-total", unless="0"),
    ("-np",): _unlike("--parallel", unless="-1"),
    ("-ngl", "--gpu-layers"): _same("--n-gpu-layers"),
    ("-sm",): _same("--split-mode"),
    ("-ts",): _same("--tensor-split"),
    ("-mg",): _same("--main-gpu"),
    ("-ot",): _same("--override-tensor"),
    ("-cmoe",): _switch("--cpu-moe"),
    ("-ncmoe",): _same("--n-cpu-moe"),
    ("-kvo",): _switch("--kv-offload"),
    ("-nkvo",): _switch("--no-kv-offload"),
    ("-t",): _unlike("--threads", unless="-1"),
    ("-tb",): _unlike("--threads-batch", unless="-1"),
    ("-b",): _same("--batch-size"),
    ("-ub",): _same("--ubatch-size"),
    ("-fa", "--flash-attn"): Name(1, _flash_attention),
    ("-ctk",): _same("--cache-type-k"),
    ("-ctv",): _same("--cache-type-v"),
    ("-kvu",): _switch("--kv-unified"),
    ("-no-kvu",): _switch("--no-kv-unified"),
    ("-cram",): Name(1, _cache_ram),
    ("-lm", "--load-mode"): Name(1, _load_mode),
    ("--repack",): Name(0, lambda value: ["--extra-bufts=on"]),
    ("-nr", "--no-repack"): Name(0, lambda value: ["--extra-bufts=off"]),
    ("-md", "--spec-draft-model"): _same("--model-draft"),
    ("--draft", "--draft-n", "--spec-draft-n-max"): Name(1, _drafts),
    ("--spec-type",): Name(1, _speculation),
    ("--rerank", "--reranking"): Name(0, lambda value: ["--pooling=rank"]),
    ("-rea",): _same("--reasoning"),
    ("--threads-http",): _same("--workers"),
    ("--sse-ping-interval",): Name(1, lambda v: [f"--sse-ping={max(0, _whole(v))}"]),
    ("-v", "--verbose", "--log-verbose"): Name(0, lambda value: ["--log-level=debug"]),
    ("--log-disable",): Name(0, lambda value: ["--log-level=error"]),
    ("--log-jsonl",): _switch("--log-json"),
    ("--no-log-jsonl",): _switch("--no-log-json"),
    # Defaults of requests.
    ("-n", "--predict", "--n-predict"): _sampling("n_predict"),
    ("--keep",): _sampling("n_keep"),
    ("-s", "--seed"): _sampling("seed"),
    ("--temp", "--temperature"): _sampling("temperature"),
    ("--top-k",): _sampling("top_k"),
    ("--top-p",): _sampling("top_p"),
    ("--min-p",): _sampling("min_p"),
    ("--top-nsigma", "--top-n-sigma"): _sampling("top_n_sigma"),
    ("--xtc-probability",): _sampling("xtc_probability"),
    ("--xtc-threshold",): _sampling("xtc_threshold"),
    ("--typical", "--typical-p"): _sampling("typical_p"),
    ("--repeat-last-n",): _sampling("repeat_last_n"),
    ("--repeat-penalty",): _sampling("repeat_penalty"),
    ("--presence-penalty",): _sampling("presence_penalty"),
    ("--frequency-penalty",): _sampling("frequency_penalty"),
    ("--dry-multiplier",): _sampling("dry_multiplier"),
    ("--dry-base",): _sampling("dry_base"),
    ("--dry-allowed-length",): _sampling("dry_allowed_length"),
    ("--dry-penalty-last-n",): _sampling("dry_penalty_last_n"),
    ("--adaptive-target",): _sampling("adaptive_target"),
    ("--adaptive-decay",): _sampling("adaptive_decay"),
    ("--dynatemp-range",): _sampling("dynatemp_range"),
    ("--dynatemp-exp",): _sampling("dynatemp_exponent"),
    ("--mirostat",): _sampling("mirostat"),
    ("--mirostat-lr",): _sampling("mirostat_eta"),
    ("--mirostat-ent",): _sampling("mirostat_tau"),
    ("--samplers",): _sampling("samplers"),
    ("--sampler-seq", "--sampling-seq"): _sampling("samplers"),
    ("--ui", "--webui"): Name(0, lambda value: ["--page"]),
    ("--no-ui", "--no-webui"): Name(0, lambda value: ["--no-page"]),
    ("--ignore-eos",): Name(0, lambda value: ["--sampling=ignore_eos=true"]),
    # What cLLM does anyway, or what changes no answer here.
    (
        "--jinja", "--no-jinja", "-cb", "--cont-batching", "-nocb", "--no-cont-batching",
        "--embedding", "--embeddings", "--warmup", "--no-warmup", "--perf", "--no-perf",
        "--cache-prompt", "--no-cache-prompt", "--cache-idle-slots",
        "--no-cache-idle-slots", "--op-offload", "--no-op-offload", "--no-host", "-bs",
        "--backend-sampling", "--prefill-assistant", "--offline",
        "--mmproj-auto", "--no-mmproj", "--no-mmproj-auto", "-e",
        "--escape", "--log-prefix", "--no-log-prefix", "--log-timestamps", "--no-log-timestamps",
        "--models-autoload", "--no-models-autoload", "--no-reasoning-preserve", "--reuse-port",
        "--no-skip-chat-parsing", "--no-ui-mcp-proxy", "--no-webui-mcp-proxy", "-no-ag",
        "--no-agent",
    ): _ignored(0),
    (
        "--media-path", "--cors-methods", "--cors-headers", "--cache-reuse", "-ctxcp",
        "--ctx-checkpoints", "--swa-checkpoints", "-cms",
        "--checkpoint-min-step", "-sps", "--slot-prompt-similarity", "-dt", "--defrag-thold",
        "--prio", "--prio-batch", "--poll", "--poll-batch", "-fit", "--fit", "-fitt",
        "--fit-target", "-fitc", "--fit-ctx", "--log-colors", "-lv", "--verbosity",
        "--log-verbosity", "--draft-min", "--draft-n-min", "--spec-draft-n-min",
        "--spec-draft-p-min", "--draft-p-min", "--spec-draft-p-split", "--draft-p-split", "-td",
        "--threads-draft", "-tbd", "--threads-batch-draft", "-lzm", "--lazy-mode",
    ): _ignored(1),
    # What changes answers, or what a server is started for.
    ("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token", "-mu", "--model-url",
     "-dr", "--docker-repo", "-hfd", "-hfrd", "--hf-repo-draft"): _refused(1, _NO_HUB),
    ("--lora-scaled",): Name(1, _scaled),
    ("--control-vector", "--control-vector-scaled"): _refused(1, _NO_CONTROL),
    ("-mm", "--mmproj", "-mmu", "--mmproj-url"): _refused(1, _NO_IMAGES),
    ("--models-dir", "--models-preset", "--models-max"): _refused(1, _NO_ROUTER),
    ("--tools", "--tools-runtime", "--mcp-servers-config", "--mcp-servers-json"): _refused(
        1, _NO_TOOLS
    ),
    ("--ui-mcp-proxy", "--webui-mcp-proxy", "-ag", "--agent"): _refused(0, _NO_TOOLS),
    ("--ssl-key-file",): _same("--tls-key"),
    ("--ssl-cert-file",): _same("--tls-cert"),
    ("-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"): _refused(1, _NO_SELF_EXTEND),
    ("-dev", "--device", "--rpc"): _refused(1, _NO_DEVICES),
    ("--no-prefill-assistant",): _refused(
        0, "cLLM continues a final assistant message; end the conversation with another role"
    ),
    ("--special", "-sp"): _refused(0, "cLLM leaves control tokens out of texts"),
    ("--spm-infill",): _refused(0, "cLLM puts the prefix before the suffix"),
    ("--sleep-idle-seconds",): _unlike("--sleep-idle-seconds", unless="-1"),
    ("--props",): _refused(0, "properties cannot be changed"),
    ("-to", "--timeout"): _refused(1, "give --request-timeout, which counts the whole answer"),
    ("--api-prefix", "--path"): _refused(1, "cLLM serves its paths at the root and no files"),
    ("-l", "--logit-bias", "--grammar", "--grammar-file", "-j", "--json-schema", "-jf",
     "--json-schema-file", "--dry-sequence-breaker"): _refused(1, "give it in each request"),
    ("--spec-synth-len",): _refused(1, "give --spec-synth-rates"),
    ("-C", "--cpu-mask", "-Cr", "--cpu-range", "-Cb", "--cpu-mask-batch", "-Crb",
     "--cpu-range-batch"): _refused(1, "start cLLM under taskset or numactl"),
}  # fmt: skip
FLAGS = {flag: name for flags, name in _FLAGS.items() for flag in flags}

# Variables -> the flag; where the flag is a switch, the flag that switches it off, if there is one.
_VARIABLES: dict[str, tuple[str, str | None]] = {
    "MODEL": ("--model", None), "ALIAS": ("--alias", None), "TAGS": ("--tags", None),
    "HOST": ("--host", None), "PORT": ("--port", None), "CTX_SIZE": ("-c", None),
    "N_PARALLEL": ("-np", None), "N_GPU_LAYERS": ("-ngl", None), "THREADS": ("-t", None),
    "BATCH": ("-b", None), "UBATCH": ("-ub", None), "FLASH_ATTN": ("-fa", None),
    "CACHE_TYPE_K": ("-ctk", None), "CACHE_TYPE_V": ("-ctv", None), "CACHE_RAM": ("-cram", None),
    "LOAD_MODE": ("-lm", None), "POOLING": ("--pooling", None),
    "SPEC_DRAFT_MODEL": ("-md", None), "SPEC_DRAFT_N_MAX": ("--draft", None),
    "DRAFT_MAX": ("--draft", None), "SPEC_TYPE": ("--spec-type", None),
    "CORS_CREDENTIALS": ("--cors-credentials", "--no-cors-credentials"),
    "API_KEY_FILE": ("--api-key-file", None), "CORS_ORIGINS": ("--cors-origins", None),
    "CHAT_TEMPLATE": ("--chat-template", None),
    "CHAT_TEMPLATE_FILE": ("--chat-template-file", None),
    "CHAT_TEMPLATE_KWARGS": ("--chat-template-kwargs", None),
    "REASONING": ("--reasoning", None), "THINK": ("--reasoning-format", None),
    "THINK_BUDGET": ("--reasoning-budget", None), "THREADS_HTTP": ("--threads-http", None),
    "SSE_PING_INTERVAL": ("--sse-ping-interval", None), "LOG_FILE": ("--log-file", None),
    "N_PREDICT": ("-n", None), "TEMPERATURE": ("--temp", None), "TOP_K": ("--top-k", None),
    "TOP_P": ("--top-p", None), "MIN_P": ("--min-p", None),
    "REPEAT_PENALTY": ("--repeat-penalty", None),
    "PRESENCE_PENALTY": ("--presence-penalty", None),
    "FREQUENCY_PENALTY": ("--frequency-penalty", None),
    "KV_UNIFIED": ("-kvu", "-no-kvu"), "REPACK": ("--repack", "--no-repack"),
    "ENDPOINT_METRICS": ("--metrics", "--no-metrics"), "ENDPOINT_SLOTS": ("--slots", "--no-slots"),
    "UI": ("--ui", "--no-ui"),
    "RERANKING": ("--reranking", ""), "LOG_JSONL": ("--log-jsonl", "--no-log-jsonl"),
    "CONTEXT_SHIFT": ("--context-shift", "--no-context-shift"), "ENDPOINT_PROPS": ("--props", ""),
    "HF_REPO": ("-hf", None), "HF_FILE": ("-hff", None), "MODEL_URL": ("-mu", None),
    "MMPROJ": ("-mm", None), "MODELS_DIR": ("--models-dir", None), "TOOLS": ("--tools", None),
    "SSL_KEY_FILE": ("--ssl-key-file", None), "SSL_CERT_FILE": ("--ssl-cert-file", None),
    "API_PREFIX": ("--api-prefix", None), "TIMEOUT": ("--timeout", None),
    "SPLIT_MODE": ("-sm", None), "TENSOR_SPLIT": ("-ts", None), "MAIN_GPU": ("-mg", None),
    "DEVICE": ("-dev", None), "OVERRIDE_TENSOR": ("-ot", None), "N_CPU_MOE": ("-ncmoe", None),
    "NUMA": ("--numa", None), "ROPE_SCALING_TYPE": ("--rope-scaling", None),
    "ROPE_FREQ_BASE": ("--rope-freq-base", None), "ROPE_FREQ_SCALE": ("--rope-freq-scale", None),
    "ROPE_SCALE": ("--rope-scale", None), "YARN_ORIG_CTX": ("--yarn-orig-ctx", None),
    "YARN_EXT_FACTOR": ("--yarn-ext-factor", None),
    "YARN_ATTN_FACTOR": ("--yarn-attn-factor", None),
    "YARN_BETA_SLOW": ("--yarn-beta-slow", None), "YARN_BETA_FAST": ("--yarn-beta-fast", None),
    "CPU_MOE": ("--cpu-moe", ""), "KV_OFFLOAD": ("--kv-offload", "--no-kv-offload"),
    "SWA_FULL": ("--swa-full", ""),
}  # fmt: skip
_VARIABLES_IGNORED = (
    *("CONT_BATCHING", "EMBEDDINGS", "JINJA", "CACHE_PROMPT", "CACHE_REUSE", "CACHE_IDLE_SLOTS"),
    *("CTX_CHECKPOINTS", "PERF", "FIT", "FIT_CTX", "FIT_TARGET", "DEFRAG_THOLD"),
    *("LOG_COLORS", "LOG_PREFIX", "LOG_TIMESTAMPS", "LOG_VERBOSITY", "OFFLINE", "BACKEND_SAMPLING"),
    *("PREFILL_ASSISTANT", "SPEC_DRAFT_N_MIN", "SPEC_DRAFT_P_MIN", "DRAFT_MIN"),
    *("MMPROJ_AUTO", "MMPROJ_OFFLOAD", "MODELS_AUTOLOAD", "LAZY_MODE", "NO_HOST", "REUSE_PORT"),
)


def in_own_words(argv: Sequence[str]) -> Words:
    """The command line in cLLM's names. Raises SettingsError for what cannot be done here."""
    found: Words = []
    spoken = ""  # llama-server's spelling that was read
    total = None  # --ctx-size as it was given
    waiting = iter(argv)
    for word in waiting:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")  # as llama-server does
        name = FLAGS.get(flag)
        if flag in ("--ctx-size", "--cache-ram"):
            value = value if equals else next(waiting, "")
            found += [flag, value] if value else [flag]
            total = value if flag == "--ctx-size" else total
            if (
                flag == "--cache-ram"
                and value.isdecimal()
                and len(value) < 8
                and 0 < int(value) < 1 << 20
            ):
                raise SettingsError(
                    f"--cache-ram: {value} would be bytes; llama-server's {value} MiB are {value}M"
                )
            continue
        if name is None:
            found.append(word if not equals else f"{flag}={value}")
            continue
        if name.takes and not equals:
            value = next(waiting, "")
            if not value:
                raise SettingsError(f"{flag}: expected one argument")
        found += _words(flag, name, value)
        if flag not in ("-m", "--flash-attn", "--sleep-idle-seconds"):
            spoken = spoken or flag
    if total is not None and spoken:
        raise SettingsError(
            f"--ctx-size: {total} tokens are for each sequence here, and for all together in "
            f'llama-server, whose "{spoken}" is on this command line; write -c {total} for all'
        )
    return found


def from_variables(environ: Mapping[str, str]) -> Words:
    """The command line that llama-server's variables stand for, in cLLM's names.

    Raises SettingsError for an unknown variable, and for what cannot be done here.
    """
    found: Words = [f"--api-key={environ[_KEY]}"] if environ.get(_KEY) else []
    for variable, value in _set_in(environ):
        plain = variable.removeprefix(PREFIX)
        if plain in _VARIABLES_IGNORED:
            continue
        if plain not in _VARIABLES:
            near = did_you_mean(variable, [PREFIX + name for name in _VARIABLES])
            raise SettingsError(f"{variable}: cLLM has no such setting of llama-server{near}")
        flag, off = _VARIABLES[plain]
        if off is not None:
            word = value.lower()
            if word not in _ON | _OFF:
                raise SettingsError(f'{variable}: got "{shown(value)}", expected on or off')
            switched = flag if word in _ON else off
            if switched:
                found += _words(variable, FLAGS.get(switched, _switch(switched)), "")
            continue
        found += _words(variable, FLAGS.get(flag, _same(flag)), value)
    return found


def _set_in(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for variable, value in sorted(environ.items()):
        if variable.startswith(PREFIX) and value != "":
            yield variable, value


def _words(source: str, name: Name, value: str) -> Words:
    try:
        return name.words(value)
    except ValueError as error:
        given = f'got "{shown(value)}", ' if value else ""
        raise SettingsError(f"{source}: {given}{error}") from None
