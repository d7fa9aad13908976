"""Runs llama-server's own test suite against cLLM, or against llama-server with the same models.

    python -m tests.tools.llama_server_suite --source DIR [--server PROGRAM] [test_completion …]

DIR is the unpacked source distribution of llama-cpp-python, which contains llama.cpp and the suite
(`pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==VERSION`). The suite is
copied to a scratch directory; nothing of it is kept. Its tests that need a network or hours
(`slow`) are not run.

Every test is run; a failure of a test of something that cLLM does not have (MISSING) says so.

The suite's models are downloads with known texts. Here random models take their place, so the
copy is loosened: texts may be any, and a count of tokens may be any number above 0 where the suite
expects the count of its own vocabulary. `--server` runs llama-server with the same models and the
same copy, which shows whether a failure is one of the loosened suite.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SUITE = "vendor/llama.cpp/tools/server/tests"
TEMPLATES = "vendor/llama.cpp/models/templates"
BERT_VOCABULARY = "vendor/llama.cpp/models/ggml-vocab-bert-bge.gguf"

# What cLLM does not have, or does otherwise -> the tests of it, as parts of their names.
MISSING = {
    "web page": ("test_basic.py::test_no_ui", "test_access_static_assets"),
    "images": (
        "test_vision_api.py", "test_local_media_file", "multimodal", "_image", "_media", "vision",
    ),
    "model router": ("test_router.py", "test_stream.py"),
    "MCP": ("test_mcp_servers.py", "test_proxy.py", "test_cors_proxy"),
    "built-in tools": ("test_tools_builtin.py", "with_tools_enabled"),
}  # fmt: skip

# File -> (pattern, replacement): what depends on the suite's vocabulary and texts, and a few lines
# that no other server can serve: words of llama-server's log, its metrics that stand still while
# the model is unloaded (ours include the server's uptime), and "*" as the answer to a preflight for
# Authorization, which browsers refuse (Fetch, CORS-preflight fetch, step 7).
LOOSENED: dict[str, tuple[tuple[str, str], ...]] = {
    "unit/test_completion.py": (
        (r'== "<s> " \+ prompt', ".endswith(prompt)"),
        (r'timings\["cache_n"\] == n_prompt', 'timings["cache_n"] > 0'),
        (r'tok\["id"\] > 0', 'tok["id"] >= 0'),
        (r'prob\["id"\] > 0', 'prob["id"] >= 0'),
    ),
    "unit/test_chat_completion.py": (
        (r'\["prompt"\] == "<s> (.*)"\n', r'["prompt"].endswith("\1")\n'),
        (r'\["prompt_tokens"\] == n_prompt', '["prompt_tokens"] > 0'),
        (r'\["cached_tokens"\] == n_cache\b', '["cached_tokens"] >= min(n_cache, 9)'),
        (r"total_batch_count == batch_count", "total_batch_count >= 2"),
        (r'\{"const": "42"\}, 6,', '{"const": "42"}, 12,'),
    ),
    "unit/test_kv_keep_only_active.py": (
        (r'    assert "(__TEST_TAG_|updating).*log\.drain\(\)\n', ""),
    ),
    "unit/test_security.py": ((r'Allow-Headers", "\*"', 'Allow-Headers", "Authorization"'),),
    "unit/test_sleep.py": (
        (r"return res\.body(?=\n\n\ndef get_metric)", "return llama_servers(res.body)"),
    ),
    "unit/test_ctx_shift.py": (
        (r'\["prompt_n"\] == 226', '["prompt_n"] > 160'),
        (r"\(-1, 248, True\)", "(-1, 250, True)"),
    ),
    "unit/test_slot_save.py": (
        (r"== 21\b", "> 6"), (r"== 84\b", "> 63"), (r"== 6 ", "< 12 "),
    ),
    "unit/test_speculative.py": ((r'"Hello " \* 248', '"Hello " * 40'),),
    "unit/test_rerank.py": ((r'\["index"\] == [23]', '["index"] in range(4)'),),
    "unit/test_tokenize.py": ((r"\[0\] == bosId", "[0] > 0"), (r'\["id"\] > 0', '["id"] >= 0')),
}  # fmt: skip

# Given to pytest in the scratch directory: the part of the loosening that needs no edit.
PLUGIN = '''
import re
import shutil
import socket
import sys
import types

sys.modules["wget"] = types.ModuleType("wget")
sys.modules["wget"].download = lambda url, out: shutil.copy(
    LORA if "shakespeare" in url else MODEL, out
)

import utils

KEPT = ("42", "foooooo", "a{5,5}")  # texts that a schema or a grammar demands
matches = utils.match_regex


class Count(int):
    """Equal to any number of tokens above 0."""

    def __eq__(self, other):
        return isinstance(other, int) and other > 0

    __hash__ = int.__hash__

    def __rmul__(self, other):
        return self


addresses = socket.getaddrinfo


def local(host, *more, **named):
    """Nothing leaves this machine."""
    if host not in ("127.0.0.1", "localhost", "::1", None):
        raise socket.gaierror(f"{host} is not looked up")
    return addresses(host, *more, **named)


socket.getaddrinfo = local
utils.match_regex = lambda regex, text: (
    matches(regex, text) if any(kept in regex for kept in KEPT) else isinstance(text, str)
)
utils.llama_servers = lambda text: "".join(
    line for line in text.splitlines(True) if line.startswith("llamacpp:")
)
utils.ServerPreset.load_all = staticmethod(lambda: None)


def pytest_collection_modifyitems(items):
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        for name in ("n_prompt", "n_tokens"):
            if name in params:
                params[name] = Count(params[name])
'''


def served(argv: Sequence[str]) -> list[str]:
    """The command line of one server of the suite, with the local models.

    What differs between the two servers by design is said here, and nothing else is changed:
    cLLM shows metrics and allows no other origins by default, counts --ctx-size per sequence and
    --cache-ram in bytes. cLLM computes with one thread, as the suite starts many servers.
    """
    models = Path(os.environ["SUITE_MODELS"])
    ours = "SUITE_SERVER" not in os.environ
    waiting, kept, names = list(argv), [], ""
    while waiting:
        word = waiting.pop(0)
        if word in ("--hf-repo", "--hf-file", "--model-url", "--model"):
            names += waiting.pop(0).lower()
        elif word == "--offline":
            pass
        elif word == "--ctx-size" and ours:
            kept += ["-c", waiting.pop(0)]
        elif word == "--cache-ram" and ours:
            kept += [word, waiting.pop(0) + "M"]
        else:
            kept.append(word)
    model = "random"
    for part in ("infill", "bert", "reranker"):
        model = part if part in names else model
    kept = ["--model", str(models / f"{model}.gguf"), "--threads", "1", *kept]
    if ours and "--metrics" not in kept:
        kept.append("--no-metrics")
    if ours and "--cors-origins" not in kept:
        kept += ["--cors-origins", "*", "--cors-credentials"]
    return kept


def serve(argv: Sequence[str]) -> int:
    """Be the server that the suite starts."""
    command = served(argv)
    server = os.environ.get("SUITE_SERVER")
    if server:
        os.execv(server, [server, *command])
    from cllm.main import main as run

    return run(command)


def write_models(folder: Path, source: Path) -> None:
    """The random models in place of the suite's."""
    from gguf import GGUFReader

    from scripts.bench.models.embedding_model import Shape, write_bert
    from tests import random_model
    from tests.engine.lora_files import write_lora

    random_model.write(folder / "random.gguf")
    random_model.write(folder / "infill.gguf", fim=True)
    write_lora(folder / "random.gguf", folder / "lora.gguf", seed=1)
    listed = GGUFReader(source / BERT_VOCABULARY).fields["tokenizer.ggml.tokens"].contents()
    words = [piece[1:] for piece in listed if piece.startswith("▁")]
    shape = Shape(layers=2, width=64, heads=4, feed_forward=128)
    write_bert(folder / "bert.gguf", shape, words, "cls")
    write_bert(folder / "reranker.gguf", shape, words, "rank")


def prepare(source: Path, scratch: Path) -> Path:
    """Copy the suite, loosen the copy and write the models. Returns the suite's directory."""
    suite = scratch / "tools/server/tests"
    if suite.exists():
        shutil.rmtree(suite)
    shutil.copytree(source / SUITE, suite)
    shutil.copytree(source / TEMPLATES, scratch / "models/templates", dirs_exist_ok=True)
    for name, edits in LOOSENED.items():
        path = suite / name
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in edits:
            text, count = re.subn(pattern, replacement, text)
            if not count:
                raise SystemExit(f"{name} has changed: there is no {pattern}")
        path.write_text(text, encoding="utf-8")
    models = scratch / "random-models"
    if not models.exists():
        models.mkdir(parents=True)
        write_models(models, source)
    (suite / "tmp").mkdir(exist_ok=True)
    plugin = "".join(
        f"{name} = {str(models / file)!r}\n"
        for name, file in (("MODEL", "random.gguf"), ("LORA", "lora.gguf"))
    )
    plugin += PLUGIN
    (suite / "loosened.py").write_text(plugin, encoding="utf-8")
    program = suite / "server.sh"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m tests.tools.llama_server_suite serve "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    return suite


def missing(name: str) -> str:
    """The feature that cLLM lacks and a test is about, or nothing."""
    for feature, parts in MISSING.items():
        if any(part in name for part in parts):
            return feature
    return ""


def run(suite: Path, wanted: Sequence[str], port: int, server: str | None) -> int:
    """Run the files and print, for each, what passed, and every failure in one line."""
    report = suite / "report.xml"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(suite), str(ROOT))),
        "LLAMA_SERVER_BIN_PATH": str(suite / "server.sh"),
        "SUITE_MODELS": str(suite.parent.parent.parent / "random-models"),
        "PORT": str(port),
    }
    if server:
        env["SUITE_SERVER"] = str(Path(server).resolve())
    command = [
        sys.executable, "-m", "pytest", "-p", "loosened", "-p", "no:cacheprovider", "-q",
        "--tb=short", "--no-header", f"--junitxml={report}", "-m", "not slow",
        *(wanted or ["unit"]),
    ]  # fmt: skip
    report.unlink(missing_ok=True)
    log = suite / "log.txt"
    with log.open("w") as output:
        subprocess.run(command, cwd=suite, env=env, stdout=output, stderr=output, check=False)
    if not report.exists():
        print(f"nothing was run; see {log}")
        return 1
    return shown(report, log)


def shown(report: Path, log: Path) -> int:
    """Print what passed, and every failure in one line with the missing feature it belongs to."""
    files: dict[str, Counter[str]] = {}
    failures = []
    for case in ET.parse(report).iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2]
        fault = case.find("failure") if case.find("failure") is not None else case.find("error")
        state = "failed" if fault is not None else "passed"
        state = "skipped" if case.find("skipped") is not None else state
        files.setdefault(file, Counter())[state] += 1
        if fault is not None:
            name = f"{file}.py::{case.get('name')}"
            why = (fault.get("message") or "").split("\n")[0][:150]
            failures.append(f"[{missing(name) or '?'}] {name}: {why}")
    for file, states in sorted(files.items()):
        print(f"{file:28} {dict(states)}")
    total = sum(files.values(), Counter[str]())
    print(f"{'all':28} {dict(total)} of {sum(total.values())}")
    for line in sorted(failures):
        print(line)
    print(f"log: {log}")
    return 1 if failures else 0


def main() -> int:
    """Run the suite, or one of its servers."""
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--server", metavar="PROGRAM", help="llama-server, to compare")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir(), "cllm-suite"))
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("tests", nargs="*", help="unit/test_completion.py, …; all without")
    options = parser.parse_args()
    suite = prepare(options.source.resolve(), options.scratch.resolve())
    return run(suite, options.tests, options.port, options.server)


if __name__ == "__main__":
    sys.exit(main())
