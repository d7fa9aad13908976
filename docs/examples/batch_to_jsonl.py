"""Generate for every line of a file and write JSON lines, in the same order.

    python docs/examples/batch_to_jsonl.py prompts.txt answers.jsonl [--model FILE.gguf]

No server is needed. As many prompts as the engine has sequences are computed together. A line that
cannot be answered gets an "error" instead of a "text". Lines that OUTPUT has already are skipped,
so that a run which was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from cllm import Engine, SamplingParams
from cllm.engine import EngineError, Generation
from cllm.models import demo_path


def submitted(engine: Engine, prompt: str, params: SamplingParams) -> Generation | EngineError:
    """The generation, or why there is none."""
    try:
        return engine.submit(prompt, params)
    except EngineError as error:  # an empty prompt, one that is too long
        return error


def answered(prompt: str, generation: Generation | EngineError) -> dict[str, Any]:
    """What OUTPUT has of a prompt; waits for the generation's end."""
    try:
        if isinstance(generation, EngineError):
            raise generation
        completion = generation.result()
    except EngineError as error:
        return {"prompt": prompt, "error": str(error)}
    return {
        "prompt": prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "tokens": completion.usage.completion_tokens,
    }


def write(engine: Engine, prompts: list[str], params: SamplingParams, output: TextIO) -> None:
    """Keeps twice as many prompts in the engine as it computes together: it is never idle."""
    waiting: deque[tuple[str, Generation | EngineError]] = deque()
    ahead = 2 * engine.info().context.parallel
    for number in range(len(prompts) + ahead):
        if number < len(prompts):
            prompt = prompts[number]
            waiting.append((prompt, submitted(engine, prompt, params)))
        if waiting and (number >= len(prompts) or len(waiting) >= ahead):
            line = json.dumps(answered(*waiting.popleft()), ensure_ascii=False)
            output.write(line + "\n")
            output.flush()


def main() -> None:
    """Read the prompts, skip those that are done, write the rest."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("prompts", type=Path, help="a prompt in each line")
    options.add_argument("output", type=Path, metavar="OUTPUT")
    options.add_argument("--model", type=Path, default=demo_path(), metavar="FILE.gguf")
    options.add_argument("--parallel", type=int, default=8)
    options.add_argument("--max-tokens", type=int, default=100)
    given = options.parse_args()

    prompts = given.prompts.read_text(encoding="utf-8").splitlines()
    with given.output.open("a+", encoding="utf-8") as output:
        output.seek(0)
        done = sum(1 for _ in output)
        params = SamplingParams.of(max_tokens=given.max_tokens, temperature=0.0)
        with Engine.load(given.model, parallel=given.parallel) as engine:
            write(engine, prompts[done:], params, output)
    print(f"{len(prompts) - done} of {len(prompts)} prompts answered in {given.output}")


if __name__ == "__main__":
    main()
