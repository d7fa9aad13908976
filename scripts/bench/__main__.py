"""The command line of the benchmarks: python -m scripts.bench COMMAND [OPTIONS]."""

from __future__ import annotations

import argparse
import importlib
import sys

from .common import run

PROGRAM = "python -m scripts.bench"
# Command: the module whose main() runs, what it does.
COMMANDS = {
    "serve": ("serve", "named workloads on cLLM, llama-server and other servers, in turns"),
    "curve": ("curve", "prompt and generated tokens a second at 1 to 64 sequences, in turns"),
    "http": ("http", "the HTTP server: throughput, idle and slow crowds, memory, start-up"),
    "streams": ("streams", "many concurrent SSE streams, and /health next to them"),
    "chat": ("chat", "processor time of Python for one streamed chat token"),
    "cache": ("cache", "the engine alone: shared prefixes, returning conversations, pacing"),
    "gaps": ("gaps", "the engine alone: its own time between two decodes, by part"),
    "fairness": ("fairness", "time to the first token of a small client next to a big one"),
    "speculation": ("speculation", "drafts on real text: speed with and without, by kind"),
    "constraints": ("constraints", "constrained generation against llama.cpp's grammar sampler"),
    "page": ("page", "the page in a browser: first paint, bytes, frames; what watchers cost"),
    "embeddings": ("embeddings", "texts embedded per second, against llama-server"),
    "make-model": ("models.bench_model", "a generative model with random weights"),
    "make-embedding-model": ("models.embedding_model", "an embedding model with random weights"),
}


def main() -> None:
    """Run the named command; its module reads the options that follow the name."""
    commands = "\n".join(f"  {name:22}{about}" for name, (_module, about) in COMMANDS.items())
    options = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Benchmarks of cLLM, and the models they are run with.",
        epilog=f"commands:\n{commands}\n\n{PROGRAM} COMMAND --help lists the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    command = options.parse_args(sys.argv[1:2] or ["--help"]).command
    module = importlib.import_module(f".{COMMANDS[command][0]}", __package__)
    # The program's name as argparse and the reports show it, and the options after COMMAND.
    sys.argv[:2] = [f"{PROGRAM} {command}"]
    run(module.main)


if __name__ == "__main__":
    main()
