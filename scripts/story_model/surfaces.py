"""From a story state to the words for the slots of the lines, and to whole stories."""

from __future__ import annotations

import random

from . import chinese, english
from .beats import beats
from .lexicon import COLOURS, REPAIRS, Kind
from .plan import Plan

_OBJECTIVE = {"he": "him", "she": "her"}
_POSSESSIVE = {"he": "his", "she": "her"}
_MALE_RECIPIENTS = {"father", "grandfather", "little brother"}


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def little(kind: Kind) -> str:
    """The Chinese kind with 小 before it."""
    return "小" + kind.zh


def _english(plan: Plan) -> dict[str, str]:
    colour = COLOURS[plan.colour].en
    hero, friend = plan.hero, plan.friend
    words = {
        "H": hero.name,
        "K": hero.kind.en,
        "T": plan.trait.en,
        "F": friend.name,
        "J": friend.kind.en,
        "aJ": article(friend.kind.en),
        "C": colour,
        "aC": article(colour),
        "O": plan.thing.en,
        "P": plan.place.en,
        "R": plan.recipient.en,
        "M": REPAIRS[plan.thing.repair].en if plan.thing.repair else "",
        "W": english.WHERE.get(plan.obstacle, ""),
        "he": hero.pronoun,
        "him": _OBJECTIVE[hero.pronoun],
        "his": _POSSESSIVE[hero.pronoun],
        "fhe": friend.pronoun,
        "fhim": _OBJECTIVE[friend.pronoun],
        "fhis": _POSSESSIVE[friend.pronoun],
        "rhim": "him" if plan.recipient.en in _MALE_RECIPIENTS else "her",
    }
    for slot in ("he", "his", "fhe", "fhis"):
        words[slot.capitalize()] = words[slot].capitalize()
    return words


def _chinese(plan: Plan) -> dict[str, str]:
    hero, friend, thing = plan.hero, plan.friend, plan.thing
    pronouns = {hero.kind.pronoun_zh, friend.kind.pronoun_zh}
    plural = pronouns.pop() if len(pronouns) == 1 else "他"
    return {
        "H": hero.name,
        "K": little(hero.kind),
        "nK": f"一{hero.kind.measure}{little(hero.kind)}",
        "T": plan.trait.zh,
        "F": friend.name,
        "J": little(friend.kind),
        "nJ": f"一{friend.kind.measure}{little(friend.kind)}",
        "C": COLOURS[plan.colour].zh,
        "nCO": f"一{thing.measure}{COLOURS[plan.colour].zh}{thing.zh}",
        "O": thing.zh,
        "P": plan.place.zh,
        "R": plan.recipient.zh,
        "M": REPAIRS[thing.repair].zh if thing.repair else "",
        "W": chinese.WHERE.get(plan.obstacle, ""),
        "ta": hero.kind.pronoun_zh,
        "fta": friend.kind.pronoun_zh,
        "tamen": plural + "们",
    }


def surfaces(plan: Plan) -> dict[str, str]:
    """Slot -> surface, in the plan's language."""
    return _english(plan) if plan.language == "en" else _chinese(plan)


def capitalized(text: str) -> str:
    """The text with a capital first letter and the rest as it was."""
    return text[:1].upper() + text[1:]


def tell(plan: Plan, rng: random.Random) -> str:
    """The plan as one paragraph."""
    lines = (english if plan.language == "en" else chinese).LINES
    words = surfaces(plan)
    told = [capitalized(rng.choice(lines[beat]).format(**words)) for beat in beats(plan)]
    return (" " if plan.language == "en" else "").join(told)


def title(plan: Plan) -> str:
    """The title of a story in a conversation."""
    words = surfaces(plan)
    if plan.language == "en":
        return "The {K} and the {O}".format(**words)
    return "《{K}和{O}》".format(**words)


def tell_titled(plan: Plan, rng: random.Random) -> str:
    """The title, an empty line and the story."""
    return f"{title(plan)}\n\n{tell(plan, rng)}"
