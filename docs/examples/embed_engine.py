"""Embed the engine: prompts that share the batch, a stream, a limit in time, statistics.

    python docs/examples/embed_engine.py [--model FILE.gguf]

Opens no socket. Without --model the built-in model is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cllm import Engine, SamplingParams
from cllm.engine import DeadlineExceeded
from cllm.models import demo_path

PROMPTS = ["Once upon a time", "There was a little fox", "In a quiet forest", "There lived an owl"]


def together(engine: Engine) -> None:
    """submit() returns at once, so the four prompts are computed as one batch."""
    params = SamplingParams.of(max_tokens=24, temperature=0.0)
    generations = [engine.submit(prompt, params) for prompt in PROMPTS]
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        completion = generation.result(timeout=120)
        print(f"{prompt}{completion.text}  [{completion.finish_reason}]")


def streamed(engine: Engine) -> None:
    """stream() yields text as it is made; leaving the loop early cancels the generation."""
    print("Stream: There was a little panda", end="", flush=True)
    for piece in engine.stream("There was a little panda", max_tokens=24, seed=1):
        print(piece, end="", flush=True)
    print()


def limited(engine: Engine) -> None:
    """A deadline, in seconds, ends a generation that takes too long; its text so far is kept."""
    params = SamplingParams.of(max_tokens=None, ignore_eos=True)
    generation = engine.submit("A very long story", params, deadline=0.2)
    try:
        generation.result(timeout=120)
    except DeadlineExceeded as error:
        print(f"Deadline: {error}; {len(''.join(generation.take()))} characters until then")


def main() -> None:
    """Load a model, use it in three ways, close it."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--model", type=Path, default=demo_path(), metavar="FILE.gguf")
    model = options.parse_args().model
    with Engine.load(model, parallel=len(PROMPTS)) as engine:
        info = engine.info()
        print(f"Model: {info.name}, {info.context.ctx_size} tokens per sequence")
        together(engine)
        streamed(engine)
        limited(engine)
        stats = engine.stats()
        print(f"Batch: {stats.decoded_sequences / stats.steps:.1f} sequences per step")


if __name__ == "__main__":
    main()
