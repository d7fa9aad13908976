"""Training: Muon for the matrices, AdamW for the rest, a learning rate that falls linearly."""

# mypy: allow-untyped-decorators
from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .batches import micro_batches
from .corpus import Corpus
from .model import Shape, StoryModel


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast; rates rise for `warmup` steps and fall to 0 over the last part."""

    tokens: int
    micro_batches: int = 1  # of about 2 048 tokens, for each step
    warmup: int = 50
    decay_share: float = 0.6
    rate: float = 1.0  # share of the full rates
    muon_rate: float = 0.004
    adam_rate: float = 0.002
    decay: float = 0.02
    checkpoint_every: int = 100
    evaluate_every: int = 200


@dataclass(slots=True)
class Curve:
    """The losses during training: (tokens, loss) pairs in nats per learned token."""

    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seconds: float = 0.0


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rate(schedule: Schedule, step: int, tokens: int) -> float:
    """The share of the full rate at this step."""
    left = (schedule.tokens - tokens) / (schedule.decay_share * schedule.tokens)
    return schedule.rate * max(0.0, min(1.0, (step + 1) / schedule.warmup, left))


@torch.no_grad()
def held_out_loss(model: StoryModel, corpus: Corpus, most: int | None = None) -> float:
    """Mean loss per learned token over the first `most` batches."""
    total, count = 0.0, 0
    for number, (ids, targets) in enumerate(micro_batches(corpus, whole=most is None)):
        if number == most:
            break
        place = device()
        with torch.autocast(place.type, torch.bfloat16):
            total += float(model.loss(ids.to(place), targets.to(place)))
        count += int((targets >= 0).sum())
    return total / max(count, 1)


def _optimizers(model: StoryModel, schedule: Schedule) -> list[torch.optim.Optimizer]:
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embedding" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(
            matrices,
            lr=schedule.muon_rate,
            weight_decay=schedule.decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=schedule.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _step(
    model: StoryModel,
    optimizers: list[torch.optim.Optimizer],
    batches: list[tuple[Tensor, Tensor]],
    share: float,
) -> float:
    """One update over the batches at a share of the full rates; returns the mean loss."""
    place = device()
    learned = sum(int((targets >= 0).sum()) for _, targets in batches)
    total = 0.0
    for ids, targets in batches:
        with torch.autocast(place.type, torch.bfloat16):
            loss = model.loss(ids.to(place), targets.to(place)) / learned
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("full_rate", group["lr"]) * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def train(
    model: StoryModel,
    schedule: Schedule,
    corpus: Corpus,
    held_out: dict[str, Corpus],
    folder: Path,
    *,
    resume: bool = False,
) -> StoryModel:
    """Train over the corpus once, up to `schedule.tokens`; write model.pt and curve.json.

    With `resume` it continues from checkpoint.pt. A run that is resumed with fewer tokens than it
    was started with ends as if it had been started with them, unless its rate had begun to fall.
    """
    model = model.to(device())
    optimizers = _optimizers(model, schedule)
    curve, step, tokens = Curve(), 0, 0
    checkpoint = folder / "checkpoint.pt"
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        curve, step, tokens = Curve(**state["curve"]), state["step"], state["tokens"]
    started = time.monotonic() - curve.seconds
    source = micro_batches(corpus)
    for _ in range(step * schedule.micro_batches):
        next(source)
    with tqdm(
        total=schedule.tokens,
        initial=tokens,
        unit="tok",
        unit_scale=True,
        desc="train",
        mininterval=2,
    ) as bar:
        while tokens < schedule.tokens:
            batches = [b for _, b in zip(range(schedule.micro_batches), source, strict=False)]
            if not batches:
                break
            loss = _step(model, optimizers, batches, rate(schedule, step, tokens))
            new = sum(ids.numel() for ids, _ in batches)
            step, tokens = step + 1, tokens + new
            curve.seconds = time.monotonic() - started
            if step % 5 == 0:
                curve.train.append((tokens, loss))
            bar.update(new)
            bar.set_postfix(loss=f"{loss:.3f}")
            if step % schedule.evaluate_every == 0:
                for language, sample in held_out.items():
                    value = held_out_loss(model, sample, most=8)
                    curve.held_out.setdefault(language, []).append((tokens, value))
                    tqdm.write(f"{tokens} tokens: held-out {language} {value:.4f}")
            if step % schedule.checkpoint_every == 0:
                states = [o.state_dict() for o in optimizers]
                saved = {"model": model.state_dict(), "optimizers": states, "curve": asdict(curve)}
                torch.save(saved | {"step": step, "tokens": tokens}, checkpoint)
    torch.save({"shape": asdict(model.shape), "model": model.state_dict()}, folder / "model.pt")
    (folder / "curve.json").write_text(json.dumps(asdict(curve)))
    return model


def load(folder: Path) -> StoryModel:
    """The model from `train`."""
    state = torch.load(folder / "model.pt", weights_only=True)
    model = StoryModel(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    return model
