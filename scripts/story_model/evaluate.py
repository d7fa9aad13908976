"""Asks the finished file for stories and answers that are not in training, and measures them."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from . import corpus, noise
from .asking import phrases, request
from .checker import Verdict, check
from .dialogue import ASSISTANT, USER, Turn
from .lexicon import KINDS
from .measures import Copying, repeated_share, units
from .plan import make_plan
from .speaker import Reply, Sampling, Speaker
from .surfaces import little

PROMPTS = 100
PROMPT_SEED = 4
SAMPLES = 10  # of each language, the first ones
DEFAULT_SAMPLING = Sampling(temperature=0.8, top_p=0.95, top_k=40)


@dataclass(frozen=True, slots=True)
class Story:
    """A request, the answer, and what is wrong with it ("": nothing)."""

    prompt: str
    text: str
    reason: str
    tokens: int


@dataclass(slots=True)
class Results:
    """All measures; those that are dicts are by language."""

    consistent: dict[str, float] = field(default_factory=dict)
    sampled: dict[str, float] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    repeated: dict[str, float] = field(default_factory=dict)
    verbatim: dict[str, float] = field(default_factory=dict)
    passages: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, list[str]] = field(default_factory=dict)
    wrong_answers: dict[str, list[str]] = field(default_factory=dict)
    wrong_limits: dict[str, list[str]] = field(default_factory=dict)
    samples: dict[str, list[Story]] = field(default_factory=dict)
    speed: float = 0.0
    size: int = 0


def prompts(language: str) -> list[tuple[str, str, str]]:
    """(request, hero's kind, thing) with pairs that no training story has."""
    rng = random.Random(PROMPT_SEED)
    found = []
    for _ in range(PROMPTS):
        plan = make_plan(rng, language, held_out=True)
        kind, thing = plan.hero.kind, plan.thing
        words = (kind.en, thing.en) if language == "en" else (little(kind), thing.zh)
        found.append((request(rng, plan, "ko"), *words))
    return found


def judge(text: str, language: str, kind: str, thing: str) -> tuple[str, Verdict]:
    """What is wrong with the story as an answer to a request for `kind` and `thing`, or ""."""
    verdict = check(text, language)
    words = verdict.words
    if verdict.accepted and kind not in (words.get("K"), words.get("nK", "")[2:]):
        return f"the hero is not the {kind}", verdict
    if verdict.accepted and words["O"] != thing:
        return f"the thing is not the {thing}", verdict
    return verdict.reason, verdict


def untitled(text: str) -> str:
    """The story without its title."""
    return text.split("\n\n")[-1]


def _questions(language: str, words: dict[str, str], kind: str) -> list[tuple[str, list[str]]]:
    """Questions, and the words that a right answer contains."""
    if language == "en":
        known = {k.en for k in KINDS}
        friend = next(w for w in (words.get("J"), words.get("aJ", "").split(" ")[-1]) if w in known)
        return [
            ("Who is in it?", [words["H"], kind, words["F"], friend]),
            ("Where were they?", [words["P"]]),
            (f"Who is {words['F']}?", [words["F"], friend]),
            (f"What was {words['H']} like?", [words["T"]]),
            ("What happened next?", [words["H"], words["F"]]),
        ]
    friend = words.get("J") or words["nJ"][2:]
    return [
        ("故事里有谁？", [words["H"], kind, words["F"], friend]),
        ("故事发生在哪里？", [words["P"]]),
        (f"{words['F']}是谁？", [words["F"], friend]),
        (f"{words['H']}是什么样的？", [words["T"]]),
        ("后来呢？", [words["H"], words["F"]]),
    ]


def _ask_about(
    speaker: Speaker, story: Story, language: str, kind: str, verdict: Verdict
) -> list[str]:
    """The wrong answers to the questions about one story; "" for each right one."""
    talk = [Turn(USER, story.prompt), Turn(ASSISTANT, story.text)]
    outcome = []
    for asked, expected in _questions(language, verdict.words, kind):
        reply = speaker.answer([*talk, Turn(USER, asked)])
        right = reply.ended and all(word in reply.text for word in expected)
        outcome.append("" if right else f"{asked} -> {reply.text}")
    return outcome


def _is_limit(reply: Reply) -> bool:
    # In any language: a number, for example, belongs to none.
    tables = [phrases(language) for language in corpus.LANGUAGES]
    known = (t.LIMITS + t.WHO_ARE_YOU_REPLIES + t.GREETING_REPLIES for t in tables)
    return reply.ended and any(reply.text in replies for replies in known)


def _stories(speaker: Speaker, language: str, results: Results) -> list[Story]:
    stories: list[Story] = []
    outcome: list[str] = []
    tokens: list[int] = []
    for prompt, kind, thing in tqdm(prompts(language), desc=f"stories {language}", mininterval=5):
        reply = speaker.answer([Turn(USER, prompt)])
        reason, verdict = judge(reply.text, language, kind, thing)
        reason = reason if reply.ended else reason or "it does not end"
        story = Story(prompt, reply.text, reason, reply.tokens)
        stories.append(story)
        tokens.append(reply.tokens)
        if not reason and len(outcome) < 5 * 40:
            outcome += _ask_about(speaker, story, language, kind, verdict)
    results.consistent[language] = sum(not s.reason for s in stories) / len(stories)
    results.rejected[language] = [f"{s.prompt} -> {s.reason}" for s in stories if s.reason]
    results.answers[language] = outcome.count("") / max(len(outcome), 1)
    results.wrong_answers[language] = [wrong for wrong in outcome if wrong]
    results.tokens[language] = sum(tokens) / len(tokens)
    results.samples[language] = stories[:SAMPLES]
    return stories


def _sampled(speaker: Speaker, language: str, results: Results) -> None:
    """Stories and limits under the default sampling."""
    rng, accepted = random.Random(PROMPT_SEED), 0
    chosen = prompts(language)[:50]
    for seed, (prompt, kind, thing) in enumerate(tqdm(chosen, desc="sampled", mininterval=5)):
        how = Sampling(**{**asdict(DEFAULT_SAMPLING), "seed": seed})
        reply = speaker.answer([Turn(USER, prompt)], how)
        accepted += not judge(reply.text, language, kind, thing)[0]
    results.sampled[language] = accepted / len(chosen)
    wrong = []
    for seed in range(PROMPTS):
        asked = noise.off_topic(rng, language)
        how = Sampling(**{**asdict(DEFAULT_SAMPLING), "seed": seed})
        reply = speaker.answer([Turn(USER, asked)], how)
        if not _is_limit(reply):
            wrong.append(f"{asked!r} -> {reply.text!r}")
    results.limits[language] = 1 - len(wrong) / PROMPTS
    results.wrong_limits[language] = wrong


def _copying(stories: dict[str, list[Story]], seed: int, documents: int, results: Results) -> None:
    readers = {
        code: Copying([untitled(s.text) for s in told], code) for code, told in stories.items()
    }
    source = corpus.documents(seed, documents)
    for document in tqdm(source, total=documents, desc="training text", mininterval=5):
        for text in document.stories:
            readers[document.language].read(untitled(text))
    for code, reader in readers.items():
        results.verbatim[code] = reader.verbatim_share()
        results.passages[code] = reader.passage_share()


def _speed(speaker: Speaker) -> float:
    """Tokens per second of one greedy stream, the best of five."""
    best = 0.0
    for _ in range(5):
        reply = speaker.answer([Turn(USER, "Tell me a story about a fox and a lantern.")])
        best = max(best, reply.tokens / reply.seconds)
    return best


def evaluate(path: Path, seed: int, documents: int, threads: int = 2) -> Results:
    """All measures of the file.

    Copies are searched in the first `documents` documents of the training text of this seed.
    """
    speaker, results = Speaker(path, threads), Results()
    results.size = path.stat().st_size
    results.speed = _speed(speaker)
    stories = {code: _stories(speaker, code, results) for code in corpus.LANGUAGES}
    for code, told in stories.items():
        results.repeated[code] = repeated_share(untitled(s.text) for s in told)
        _sampled(speaker, code, results)
    _copying(stories, seed, documents, results)
    return results


def show(results: Results) -> None:
    """Print the measures and the rejected stories."""
    for name, value in asdict(results).items():
        if name in ("samples", "rejected", "wrong_answers", "wrong_limits"):
            continue
        print(f"{name:12} {json.dumps(value)}")
    for name in ("rejected", "wrong_answers", "wrong_limits"):
        for code, lines in getattr(results, name).items():
            print(f"{name} {code}: {len(lines)}")
            for line in lines[:8]:
                print(f"    {line}")
    for code, samples in results.samples.items():
        common = Counter(word for s in samples for word in units(s.text)).most_common(3)
        print(f"samples {code}: most common {common}")


def save(results: Results, path: Path) -> None:
    """Write the measures as JSON."""
    path.write_text(json.dumps(asdict(results), ensure_ascii=False, indent=1))
