"""docs/demo_model.md and the picture of the loss, from the results of training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}

TEXT = """# The built-in story model

`{file}` tells short stories in English and in simple Chinese, answers questions about them, and
says politely that it knows nothing else. It is a transformer in the shape that llama.cpp calls
qwen3:

| parameters | layers | width | vocabulary | context | matrices | file |
|---|---|---|---|---|---|---|
| {parameters} | {layers} | {width} | {vocabulary} | 2 048 tokens | Q8_0 | {size} bytes |

## How it is made

No text and no weights come from elsewhere. `scripts/story_model` holds a grammar. A story is a
state (hero, friend, thing, colour, place, trait, plot, obstacle, the skill that overcomes it),
told in ten to twelve beats, each with several phrasings in both languages. Kinds have habits,
such as the fox's most frequent name, so that the most likely story differs between requests.
Questions and answers come from the same state. Everything that is not about stories, from sums to
stray bytes, is answered with the limit: "I only know little stories."

One command makes the model again, with fixed seeds:

    pip install -e '.[demo]'
    python -m scripts.story_model.build

It writes the corpus, trains a byte-level BPE vocabulary and the model, writes the GGUF file,
evaluates it and writes this page. It uses a GPU if there is one. `--start FILE.gguf` continues
from a finished file.

Training begins with {copying} random tokens that repeat. They teach attention to copy, which
keeps names and things consistent. Then come documents with stories and conversations, each read
once.

{time}

## Loss

![Loss](demo_model_loss.png)

Nats per token, over the tokens that the assistant says, after {tokens} tokens. The held-out
documents have pairs of hero and thing that never occur in training ({held_out_share} of all
pairs). Much of the remaining loss is chance that cannot be predicted: which name, which colour,
which phrasing.

| | held-out loss |
|---|---|
{losses}

## Evaluation

{prompts} requests in each language, greedy, through llama.cpp, for pairs of hero and thing that
no training text has.

| | {columns} |
|---|{rules}|
{rows}

- **Consistent**: the grammar, read backwards, accepts the text as a story of one state from the
  first sentence to the last: one hero with one name, kind and pronoun, one friend, one thing, one
  place, an obstacle that the friend can overcome, the plot's own ending. Title, hero and thing
  are the requested ones, and the story ends by itself.
- **Repeated 8-grams**: runs of eight words (Chinese: characters) that occur earlier in the same
  story.
- **Verbatim**: whole stories that are in the training text, compared without punctuation. The
  stricter measure counts stories with any run of {run_en} words (Chinese: {run_zh} characters)
  that is in the training text.
- **Sampled**: the share of 50 stories that is consistent at temperature 0.8, top-p 0.95, top-k
  40.
- **Answers**: the characters, the place, the friend, what the hero is like, what happened next;
  asked about the first 40 consistent stories.
- **Limit**: the share of {prompts} turns about something else (sums, code, other scripts,
  invented words, stray bytes) that get the limit at the default sampling. The others are listed
  below.

One greedy stream: {speed} tokens per second ({machine}).

## What it gets wrong

{wrong}

## Twenty samples, not selected

The first ten requests of the evaluation in each language, and the model's answers.

{samples}
"""


def picture(curve: dict[str, Any], path: Path) -> None:
    """Draw the losses over the tokens read."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(
        *zip(*curve["train"], strict=True), linewidth=0.6, alpha=0.6, label="training batches"
    )
    for code, points in curve["held_out"].items():
        axes.plot(
            *zip(*points, strict=True), linewidth=1.8, label=f"held out, {LANGUAGE_NAMES[code]}"
        )
    axes.set(xlabel="tokens", ylabel="nats per token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _rows(results: dict[str, Any]) -> str:
    names = {
        "consistent": "consistent",
        "repeated": "repeated 8-grams",
        "verbatim": "verbatim",
        "passages": "a long passage verbatim",
        "sampled": "sampled: consistent",
        "answers": "answers",
        "limits": "limit",
    }
    lines = []
    for key, name in names.items():
        values = " | ".join(f"{100 * results[key][code]:.1f} %" for code in LANGUAGE_NAMES)
        lines.append(f"| {name} | {values} |")
    lengths = " | ".join(f"{results['tokens'][code]:.0f}" for code in LANGUAGE_NAMES)
    return "\n".join([*lines, f"| tokens of a story, mean | {lengths} |"])


def _quoted(text: str) -> str:
    return "\n".join("> " + line for line in text.split("\n"))


def _samples(results: dict[str, Any]) -> str:
    parts, number = [], 0
    for code in LANGUAGE_NAMES:
        for sample in results["samples"][code]:
            number += 1
            verdict = "" if not sample["reason"] else f"\n\nNot accepted: {sample['reason']}"
            parts.append(f"{number}. {sample['prompt']}\n\n{_quoted(sample['text'])}{verdict}")
    return "\n\n".join(parts)


def _wrong(results: dict[str, Any], most: int = 6) -> str:
    parts = []
    for key, name in (
        ("rejected", "Stories that the checker did not accept"),
        ("wrong_answers", "Wrong answers"),
        ("wrong_limits", "Turns about something else that did not get the limit"),
    ):
        for code, language in LANGUAGE_NAMES.items():
            lines = results[key][code]
            shown = "".join(f"\n  - `{line.replace(chr(96), chr(39))}`" for line in lines[:most])
            parts.append(f"- {name}, {language}: {len(lines)}{shown}")
    return "\n".join(parts)


def report(results: dict[str, Any], facts: dict[str, Any], docs: Path) -> None:
    """Write the page and the picture into `docs`. facts: from the training run."""
    picture(facts["curve"], docs / "demo_model_loss.png")
    losses = "\n".join(f"| {LANGUAGE_NAMES[c]} | {v:.3f} |" for c, v in facts["losses"].items())
    page = _fill(results, facts, losses)
    (docs / "demo_model.md").write_text(page, encoding="utf-8")


def _spaced(count: float) -> str:
    """A number as the documents write it: 10 000."""
    return f"{count:,.0f}".replace(",", " ")


def _fill(results: dict[str, Any], facts: dict[str, Any], losses: str) -> str:
    counts = {name: facts[name] for name in ("parameters", "vocabulary", "copying", "tokens")}
    counts |= {"size": results["size"], "speed": results["speed"]}
    values = {**facts, "losses": losses, **{n: _spaced(count) for n, count in counts.items()}}
    values["held_out_share"] = f"{100 * facts['held_out_share']:.0f} %"
    return TEXT.format(
        **values,
        columns=" | ".join(LANGUAGE_NAMES.values()),
        rules="---|---",
        rows=_rows(results),
        wrong=_wrong(results),
        samples=_samples(results),
    )


def read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
