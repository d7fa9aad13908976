"""One command that makes the model and its report from nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from cllm.models import FILE_NAME

from . import corpus, evaluate, measures, report, start, tokenizer, train
from .export import export
from .model import Shape, StoryModel
from .plan import HELD_OUT_SHARE

VOCABULARY_SEED, MODEL_SEED = 1, 3
VOCABULARY_DOCUMENTS = 6000
HELD_OUT_DOCUMENTS = 300  # of each language


def _vocabulary(folder: Path, options: argparse.Namespace) -> None:
    if options.start:
        start.vocabulary(options.start).save(str(folder / "tokenizer.json"))
        return
    documents = corpus.documents(VOCABULARY_SEED, VOCABULARY_DOCUMENTS)
    texts = (text for document in documents for text in corpus.plain_text(document))
    bpe = tokenizer.train(texts, options.vocabulary)
    bpe.save(str(folder / "tokenizer.json"))
    print(f"vocabulary of {bpe.get_vocab_size()} tokens")


def _corpus(folder: Path, options: argparse.Namespace) -> None:
    bpe = tokenizer.load(folder / "tokenizer.json")
    endless = corpus.documents(options.seed, 1 << 40)
    whole = corpus.Corpus.build(bpe, endless, "corpus", tokens=options.tokens)
    whole.save(folder / "corpus.npz")
    for code in corpus.LANGUAGES:
        unseen = corpus.documents(corpus.HELD_OUT_SEED, 2 * HELD_OUT_DOCUMENTS, held_out=True)
        own = (document for document in unseen if document.language == code)
        corpus.Corpus.build(bpe, own, f"held out {code}").save(folder / f"held_out_{code}.npz")


def _held_out(folder: Path) -> dict[str, corpus.Corpus]:
    return {c: corpus.Corpus.load(folder / f"held_out_{c}.npz") for c in corpus.LANGUAGES}


def _train(folder: Path, options: argparse.Namespace) -> None:
    whole = corpus.Corpus.load(folder / "corpus.npz")
    if options.start:
        model = start.load(options.start)
    else:
        torch.manual_seed(MODEL_SEED)
        model = StoryModel(Shape(vocabulary=options.vocabulary, layers=options.layers))
        whole = corpus.joined(corpus.copying(options.vocabulary), whole)
    train.train(
        model,
        train.Schedule(tokens=len(whole.ids), rate=options.rate),
        whole,
        _held_out(folder),
        folder,
        resume=options.resume,
    )


def _export(folder: Path, options: argparse.Namespace) -> None:
    bpe = tokenizer.load(folder / "tokenizer.json")
    size = export(train.load(folder), bpe, folder / FILE_NAME)
    print(f"{folder / FILE_NAME}: {size} bytes")


def _evaluate(folder: Path, options: argparse.Namespace) -> None:
    whole = corpus.Corpus.load(folder / "corpus.npz")
    results = evaluate.evaluate(
        folder / FILE_NAME, options.seed, len(whole.starts) - 1, options.threads
    )
    evaluate.save(results, folder / "evaluation.json")
    evaluate.show(results)
    model = train.load(folder).to(train.device())
    losses = {c: train.held_out_loss(model, unseen) for c, unseen in _held_out(folder).items()}
    (folder / "losses.json").write_text(json.dumps(losses))
    print("held-out loss", losses)


def _report(folder: Path, options: argparse.Namespace) -> None:
    model, curve = train.load(folder), report.read(folder / "curve.json")
    facts = asdict(model.shape) | {
        "file": f"cllm/models/{FILE_NAME}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": curve["train"][-1][0],
        "copying": corpus.COPYING_TOKENS,
        "time": options.note,
        "machine": options.machine,
        "held_out_share": HELD_OUT_SHARE,
        "prompts": evaluate.PROMPTS,
        "run_en": measures.RUN["en"],
        "run_zh": measures.RUN["zh"],
        "curve": curve,
        "losses": report.read(folder / "losses.json"),
    }
    report.report(report.read(folder / "evaluation.json"), facts, options.docs)


STEPS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "vocabulary": _vocabulary,
    "corpus": _corpus,
    "train": _train,
    "export": _export,
    "evaluate": _evaluate,
    "report": _report,
}


def main() -> None:
    """Run the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/story_model"), help="where the results go"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the report goes")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS), help="default: all"
    )
    parser.add_argument(
        "--tokens", type=int, default=10_000_000, help="tokens of stories to train on"
    )
    parser.add_argument("--vocabulary", type=int, default=2560, help="number of tokens known")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument(
        "--start", type=Path, metavar="GGUF", help="go on from this file instead of from nothing"
    )
    parser.add_argument(
        "--seed", type=int, default=corpus.TRAINING_SEED, help="of the stories to train on"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="share of the full learning rates")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--note", default="", help="a sentence on the training time, for the report"
    )
    parser.add_argument("--machine", default="two CPU cores", help="for the report")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    for step in options.steps:
        STEPS[step](options.folder, options)


if __name__ == "__main__":
    main()
