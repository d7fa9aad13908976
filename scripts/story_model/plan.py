"""The story state: characters, thing, place and plot. Stories and answers derive from it."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from .lexicon import (
    KINDS,
    NAMES_EN,
    NAMES_ZH,
    OBSTACLES,
    PLACES,
    PLAIN_COLOURS,
    RECIPIENTS,
    THINGS,
    TRAITS,
    Kind,
    Thing,
    Word,
)

# Plot -> whether the thing gets out of reach, so that it has an obstacle and a skill.
PLOTS: dict[str, bool] = {
    "lost": True,
    "gift": True,
    "quarrel": True,
    "quest": True,
    "found": False,
    "broken": False,
    "lonely": False,
}

HELD_OUT_SHARE = 0.12

# How often a character has its kind's usual name, trait, place, obstacle and friend, and a thing
# its usual colour. Without such habits every free choice is even, and the most likely story is
# always the same. No two kinds share a usual name, so a name never suggests the wrong kind.
HABIT = 0.75

_SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u"))
_NAME_CHARACTERS = "明亮星月云雨雪花草叶山石木林果豆米糖心乐安宁康福宝玉珠铃铛点圆方红蓝青白"


@dataclass(frozen=True, slots=True)
class Character:
    """A named character; `pronoun` is the English "he" or "she"."""

    name: str
    kind: Kind
    pronoun: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One story state in one language ("en" or "zh"; only the names depend on it)."""

    language: str
    plot: str
    hero: Character
    friend: Character
    thing: Thing
    colour: str
    place: Word
    trait: Word
    recipient: Word
    obstacle: str = ""
    skill: str = ""


@dataclass(slots=True)
class Wanted:
    """The requested parts of a story; None leaves the choice to the plan."""

    hero: Kind | None = None
    friend: Kind | None = None
    thing: Thing | None = None
    place: Word | None = None
    name: str | None = None


def is_held_out(kind: Kind, thing: Thing) -> bool:
    """Whether stories of this hero and thing are excluded from the training text."""
    digest = hashlib.sha256(f"{kind.en}/{thing.en}".encode()).digest()
    return digest[0] < 256 * HELD_OUT_SHARE


def invented_name(rng: random.Random, language: str) -> str:
    """A name outside the lexicon, so that the model learns to copy names."""
    if language == "zh":
        return "".join(rng.sample(_NAME_CHARACTERS, 2))
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def _names(language: str, pronoun: str, role: str) -> tuple[str, ...]:
    """The names for a role; heroes and friends have different ones, so a name tells the role."""
    names = NAMES_EN[pronoun] if language == "en" else NAMES_ZH
    return names[(role == "friend") :: 2]


def usual_name(kind: Kind, language: str, role: str) -> tuple[str, str]:
    """The name and the pronoun that a "hero" or "friend" of this kind has most often."""
    number = KINDS.index(kind)
    pronoun = kind.pronouns_en[number % len(kind.pronouns_en)]
    names = _names(language, pronoun, role)
    return names[number // 2 if language == "en" else number], pronoun


def _character(
    rng: random.Random, language: str, kind: Kind, role: str, name: str | None = None
) -> Character:
    """A character with the usual name, any name of its role, or now and then an invented one."""
    pronoun = rng.choice(kind.pronouns_en)
    if name is not None:
        known = [p for p, names in NAMES_EN.items() if name in names and p in kind.pronouns_en]
        return Character(name, kind, known[0] if known else pronoun)
    dice = rng.random()
    if dice < HABIT:
        usual, pronoun = usual_name(kind, language, role)
        return Character(usual, kind, pronoun)
    if dice < HABIT + 0.15:
        return Character(invented_name(rng, language), kind, pronoun)
    return Character(rng.choice(_names(language, pronoun, role)), kind, pronoun)


def _place(rng: random.Random, kind: Kind) -> Word:
    usual = PLACES[KINDS.index(kind) % len(PLACES)]
    return usual if rng.random() < HABIT else rng.choice(PLACES)


def _trait(rng: random.Random, kind: Kind) -> Word:
    usual = TRAITS[KINDS.index(kind) % len(TRAITS)]
    return usual if rng.random() < HABIT else rng.choice(TRAITS)


def _colour(rng: random.Random, thing: Thing) -> str:
    colours = thing.colours or PLAIN_COLOURS
    usual = colours[THINGS.index(thing) % len(colours)]
    return usual if rng.random() < HABIT else rng.choice(colours)


def _plot(rng: random.Random, hero: Kind, thing: Thing) -> str:
    plots = [p for p in PLOTS if p != "broken" or thing.repair]
    usual = plots[(KINDS.index(hero) + THINGS.index(thing)) % len(plots)]
    # Only in a quarrel the friend appears before the obstacle that it must suit: the hardest plot.
    return usual if rng.random() < HABIT else rng.choice([*plots, "quarrel"])


def _fitting(hero: Kind, friend: Kind | None) -> list[str]:
    """The obstacles that stop the hero but not the friend, if one is given."""
    return [
        name
        for name, skills in OBSTACLES.items()
        if not set(skills) & set(hero.skills)
        and (friend is None or set(skills) & set(friend.skills))
    ]


def _friend_kind(rng: random.Random, hero: Kind, able: list[Kind]) -> Kind:
    usual = able[7 * KINDS.index(hero) % len(able)]
    return usual if rng.random() < HABIT else rng.choice(able)


def _obstacle(rng: random.Random, hero: Kind, friend: Kind | None) -> str:
    """One of those that fit, or "" if there are none."""
    fitting = _fitting(hero, friend)
    if not fitting:
        return ""
    usual = fitting[KINDS.index(hero) % len(fitting)]
    return usual if rng.random() < HABIT else rng.choice(fitting)


def make_plan(
    rng: random.Random, language: str, wanted: Wanted | None = None, *, held_out: bool = False
) -> Plan:
    """A consistent random state with the `wanted` parts; held_out: the side of the split."""
    wanted = wanted or Wanted()
    while True:
        hero_kind = wanted.hero or rng.choice(KINDS)
        thing = wanted.thing or rng.choice(THINGS)
        if is_held_out(hero_kind, thing) == held_out:
            break
        if wanted.hero is not None and wanted.thing is not None:
            raise ValueError(f"{hero_kind.en}/{thing.en} is on the other side of the split")
    plots = [p for p in PLOTS if p != "broken" or thing.repair]
    obstacle, skill, friend_kind = "", "", wanted.friend
    plot = _plot(rng, hero_kind, thing)
    others = [k for k in KINDS if k is not hero_kind]
    if plot == "quarrel" and friend_kind is None:
        # In the order of the story: the obstacle suits the friend, not the hero's usual one.
        friend_kind = _friend_kind(rng, hero_kind, [k for k in others if _fitting(hero_kind, k)])
    if PLOTS[plot]:
        obstacle = _obstacle(rng, hero_kind, friend_kind)
        if not obstacle:
            plot = rng.choice([p for p in plots if not PLOTS[p]])
    if friend_kind is None:
        skills = set(OBSTACLES.get(obstacle, ()))
        able = [k for k in others if not skills or skills & set(k.skills)]
        friend_kind = _friend_kind(rng, hero_kind, able)
    if obstacle:
        skill = rng.choice([s for s in friend_kind.skills if s in OBSTACLES[obstacle]])
    hero = _character(rng, language, hero_kind, "hero", wanted.name)
    friend = hero
    while friend.name == hero.name:
        friend = _character(rng, language, friend_kind, "friend")
    return Plan(
        language=language,
        plot=plot,
        hero=hero,
        friend=friend,
        thing=thing,
        colour=_colour(rng, thing),
        place=wanted.place or _place(rng, hero_kind),
        trait=_trait(rng, hero_kind),
        recipient=rng.choice(RECIPIENTS),
        obstacle=obstacle,
        skill=skill,
    )
