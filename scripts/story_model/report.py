"""docs/demo_model.md and the picture of the loss, from what training and evaluation wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}

TEXT = """# The built-in story model

`{file}` tells little stories in English and in simple Chinese, answers questions about them, and
says politely that it knows nothing else. It is a transformer of {parameters:,} parameters
({layers} layers, width {width}, vocabulary {vocabulary}), in the shape that llama.cpp calls qwen3,
with its matrices in Q8_0: {size:,} bytes. Its context is 2 048 tokens.

## What it is made of

No text and no weights come from elsewhere. `scripts/story_model` holds a grammar: a story is a
state (hero, friend, thing, colour, place, trait, plot, obstacle, the skill that overcomes it) that
is told in ten to twelve beats, each with several phrasings in either language. Kinds have habits,
such as the fox's most frequent name, so that the likeliest story differs from one request to the
next. Questions and answers are derived from the same state. Whatever is not about stories, from
sums to stray bytes, is answered with the limit: "I only know little stories."

One command makes the model again, with fixed seeds:

    pip install -e '.[demo]'
    python -m scripts.story_model.build

It writes the corpus, learns a byte-level BPE vocabulary, trains, writes the GGUF file, evaluates it
and writes this page; `--start FILE.gguf` goes on from a finished file instead of from nothing. It
uses a GPU when there is one.

A run from nothing begins with {copying:,} random tokens that repeat: they teach attention to copy,
which is what keeps names and things straight. Then come documents of stories and talk, each read
once.

{time}

## Loss

![Loss](demo_model_loss.png)

Nats per token, over the tokens that the assistant says; {tokens:,} tokens were read. The held-out
documents have pairs of hero and thing that never occur in training ({held_out_share:.0%} of all
pairs). Much of what is left is chance that cannot be predicted: which name, which colour, which
phrasing.

| | held-out loss |
|---|---|
{losses}

## Stories

{prompts} requests in each language, for pairs of hero and thing that no training text has, through
llama.cpp, greedy.

| | {columns} |
|---|{rules}|
{rows}

- **Consistent**: the grammar, read backwards, accepts the text as told from one state from the
  first sentence to the last: one hero with one name, kind and pronoun, one friend, one thing, one
  place, an obstacle that the friend can overcome, the plot's own ending. The title, hero and
  thing are those that were asked for, and the story ends by itself.
- **Repeated 8-grams**: runs of eight words (Chinese: characters) that the same story had before.
- **Verbatim**: whole stories that the training text has, compared without punctuation. A stricter
  measure is beside it: stories with any run of {run_en} words (Chinese: {run_zh} characters) that
  the training text has.
- **Sampled**: the share of 50 stories that is consistent at temperature 0.8, top-p 0.95, top-k 40.
- **Answers**: who is in it, where, who is the friend, what the hero is like, what happened next;
  asked about the first 40 consistent stories.
- **Limit**: the share of {prompts} turns about something else (sums, code, other scripts, invented
  words, stray bytes) that get the limit at the default sampling; the others are listed below.

One greedy stream, one token at a time: {speed:,.0f} tokens per second ({machine}).

## What it gets wrong

{wrong}

## Twenty samples, not selected

The first ten requests of the evaluation in each language, and what came back.

{samples}
"""


def picture(curve: dict[str, Any], path: Path) -> None:
    """The losses over the tokens read."""
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
    """Writes the page and the picture into `docs`; `facts` come from the training run."""
    picture(facts["curve"], docs / "demo_model_loss.png")
    losses = "\n".join(f"| {LANGUAGE_NAMES[c]} | {v:.3f} |" for c, v in facts["losses"].items())
    page = _fill(results, facts, losses)
    (docs / "demo_model.md").write_text(page, encoding="utf-8")


def _fill(results: dict[str, Any], facts: dict[str, Any], losses: str) -> str:
    values = {**facts, "losses": losses, "size": results["size"], "speed": results["speed"]}
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
