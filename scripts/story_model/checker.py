"""The grammar read backwards: whether a text is a story that one state can produce.

Every line becomes a regular expression whose slots match any word of the lexicon. A text is
accepted if its sentences follow one plot's beats to the end and every slot has one value
throughout: names, kinds, pronouns, thing, colour, place, obstacle, skill and repair.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from . import chinese, english
from .beats import SKELETONS
from .lexicon import (
    COLOURS,
    KINDS,
    OBSTACLES,
    PLACES,
    RECIPIENTS,
    REPAIRS,
    THINGS,
    TRAITS,
)
from .plan import PLOTS
from .surfaces import article, little

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """reason: empty if the story is accepted. words: the values of the slots."""

    reason: str
    words: dict[str, str]
    plot: str = ""

    @property
    def accepted(self) -> bool:
        return not self.reason


def _any(words: list[str]) -> str:
    return "|".join(re.escape(w) for w in sorted(set(words), key=len, reverse=True))


def _slot_patterns(language: str) -> dict[str, str]:
    if language == "en":
        kinds = [k.en for k in KINDS]
        colours = [c.en for c in COLOURS.values()]
        return (
            {
                "H": "[A-Z][a-z]+",
                "F": "[A-Z][a-z]+",
                "K": _any(kinds),
                "J": _any(kinds),
                "aJ": _any([article(k) for k in kinds]),
                "T": _any([t.en for t in TRAITS]),
                "C": _any(colours),
                "aC": _any([article(c) for c in colours]),
                "O": _any([t.en for t in THINGS]),
                "P": _any([p.en for p in PLACES]),
                "R": _any([r.en for r in RECIPIENTS]),
                "M": _any([r.en for r in REPAIRS.values()]),
                "W": _any(list(english.WHERE.values())),
            }
            | dict.fromkeys(("he", "fhe"), "he|she")
            | dict.fromkeys(("his", "him", "fhis", "fhim", "rhim"), "his|her|him")
        )
    kinds = [little(k) for k in KINDS]
    counted = [f"一{k.measure}{little(k)}" for k in KINDS]
    things = [f"一{t.measure}{c.zh}{t.zh}" for t in THINGS for c in COLOURS.values()]
    return {
        "H": "[\u4e00-\u9fff]{2}",
        "F": "[\u4e00-\u9fff]{2}",
        "K": _any(kinds),
        "J": _any(kinds),
        "nK": _any(counted),
        "nJ": _any(counted),
        "T": _any([t.zh for t in TRAITS]),
        "C": _any([c.zh for c in COLOURS.values()]),
        "nCO": _any(things),
        "O": _any([t.zh for t in THINGS]),
        "P": _any([p.zh for p in PLACES]),
        "R": _any([r.zh for r in RECIPIENTS]),
        "M": _any([r.zh for r in REPAIRS.values()]),
        "W": _any(list(chinese.WHERE.values())),
        "ta": "[它他她]",
        "fta": "[它他她]",
        "tamen": "[它他她]们",
    }


def _compile(line: str, patterns: dict[str, str], *, first_capital: bool) -> re.Pattern[str]:
    """A pattern with one group `slot__n` for each occurrence of a slot."""
    parts, last, count = [], 0, 0
    for match in _SLOT.finditer(line):
        parts.append(re.escape(line[last : match.start()]))
        slot = match[1]
        pattern = patterns.get(slot) or patterns[slot[0].lower() + slot[1:]]
        if slot not in patterns or (first_capital and match.start() == 0):
            pattern = f"(?i:{pattern})" if slot not in ("H", "F") else pattern
        parts.append(f"(?P<{slot}__{count}>{pattern})")
        last, count = match.end(), count + 1
    parts.append(re.escape(line[last:]))
    return re.compile("".join(parts))


@functools.cache
def _patterns(language: str) -> dict[str, tuple[re.Pattern[str], ...]]:
    module = english if language == "en" else chinese
    slots = _slot_patterns(language)
    return {
        beat: tuple(_compile(line, slots, first_capital=language == "en") for line in lines)
        for beat, lines in module.LINES.items()
    }


def _bind(words: dict[str, str], match: re.Match[str]) -> dict[str, str] | None:
    """The words with the match's slots added; None if one of them already has another value."""
    bound = dict(words)
    for group, value in match.groupdict().items():
        slot, word = group.split("__")[0], value
        if slot not in ("H", "F", "K", "J", "T", "C", "O", "P", "R", "M", "W"):
            slot, word = slot[0].lower() + slot[1:], value.lower()
        if slot == "P":
            word = value[0].lower() + value[1:]
        if bound.setdefault(slot, word) != word:
            return None
    return bound


def _contradiction(language: str, plot: str, words: dict[str, str], beat_names: list[str]) -> str:
    """What is wrong with a complete reading, or ""."""
    if words.get("H") == words.get("F"):
        return "hero and friend have one name"
    kind_of = {little(k) if language == "zh" else k.en: k for k in KINDS}
    if language == "en":
        for he, him, his in (("he", "him", "his"), ("fhe", "fhim", "fhis")):
            forms = {"he": ("him", "his"), "she": ("her", "her")}
            readings = [
                p
                for p, (o, s) in forms.items()
                if words.get(he, p) == p and words.get(him, o) == o and words.get(his, s) == s
            ]
            if not readings:
                return "pronouns change"
        hero = kind_of.get(words.get("K", ""))
        if hero and words.get("he") and words["he"] not in hero.pronouns_en:
            return "wrong pronoun"
        friend = kind_of.get(words.get("J") or words.get("aJ", "").split(" ")[-1])
    else:
        hero = kind_of.get(words.get("K") or words.get("nK", "")[2:])
        friend = kind_of.get(words.get("J") or words.get("nJ", "")[2:])
        for kind, slot in ((hero, "ta"), (friend, "fta")):
            if kind and words.get(slot, kind.pronoun_zh) != kind.pronoun_zh:
                return "wrong pronoun"
        if "O" in words and not words.get("nCO", words["O"]).endswith(words["O"]):
            return "the thing changes"
    if hero is None or friend is None:
        return "a character has no kind"
    if not PLOTS[plot]:
        return ""
    where = (english if language == "en" else chinese).WHERE
    obstacles = {b.split(":")[1] for b in beat_names if b.startswith(("event:", "attempt:"))}
    skills = [b.split(":")[1] for b in beat_names if b.startswith("help:")]
    if len(obstacles) != 1 or where[next(iter(obstacles))] != words.get("W"):
        return "the obstacle changes"
    if skills[0] not in OBSTACLES[next(iter(obstacles))] or skills[0] not in friend.skills:
        return "the friend cannot do that"
    if set(OBSTACLES[next(iter(obstacles))]) & set(hero.skills):
        return "the hero could have done that"
    return ""


def _options(beat: str, language: str) -> list[str]:
    """The names of beats that a skeleton's entry may stand for."""
    if "{" not in beat:
        return [beat]
    prefix = beat.split("{")[0]
    return [b for b in _patterns(language) if b.startswith(prefix)]


_TITLES = {
    "en": re.compile(r"The (?P<K>\w+) and the (?P<O>\w+)\n\n"),
    "zh": re.compile(r"《(?P<K>\w+)和(?P<O>\w+)》\n\n"),
}


def check(text: str, language: str) -> Verdict:
    """Read the text as a story, with or without its title."""
    title = _TITLES[language].match(text)
    verdict = check_untitled(text[title.end() :] if title else text, language)
    if title is None or not verdict.accepted:
        return verdict
    hero = verdict.words.get("K") or verdict.words["nK"][2:]
    if (hero, verdict.words["O"]) != (title["K"], title["O"]):
        return Verdict("the title is another story's", {})
    return verdict


def check_untitled(text: str, language: str) -> Verdict:
    """Read the text as a story; the reason names the furthest beat that could not be read."""
    text = text.strip()
    furthest = (0, "opening")
    contradiction = ""
    patterns = _patterns(language)
    for plot, skeleton in SKELETONS.items():
        stack: list[tuple[int, int, dict[str, str], list[str]]] = [(0, 0, {}, [])]
        while stack:
            beat, position, words, names = stack.pop()
            if beat == len(skeleton):
                if position < len(text):
                    furthest = max(furthest, (position, "after the closing"))
                    continue
                contradiction = _contradiction(language, plot, words, names)
                if not contradiction:
                    return Verdict("", words, plot)
                continue
            furthest = max(furthest, (position, skeleton[beat]))
            if beat and language == "en":
                if not text.startswith(" ", position):
                    continue
                position += 1
            for name in _options(skeleton[beat], language):
                for pattern in patterns[name]:
                    match = pattern.match(text, position)
                    bound = match and _bind(words, match)
                    if match and bound is not None:
                        stack.append((beat + 1, match.end(), bound, [*names, name]))
    reason = contradiction or f"{furthest[1]}: {text[furthest[0] : furthest[0] + 60]!r}"
    return Verdict(reason, {})
