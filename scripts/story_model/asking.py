"""How stories are asked for: the phrase tables of a language, topics, and requests."""

from __future__ import annotations

import random
from types import ModuleType

from . import phrases_en, phrases_zh
from .plan import Plan
from .surfaces import article, little


def phrases(language: str) -> ModuleType:
    """The phrase tables of a language."""
    return phrases_en if language == "en" else phrases_zh


def casual(rng: random.Random, text: str, language: str) -> str:
    """The text as typed in a hurry: often without the last mark, in lower or upper case."""
    if rng.random() < 0.25:
        text = text.rstrip(".。!！")
    if language == "en":
        dice = rng.random()
        text = text.lower() if dice < 0.2 else text.upper() if dice < 0.23 else text
    return text


def topic_words(plan: Plan) -> dict[str, str]:
    """The words for the slots of a request's topic."""
    hero, friend, thing = plan.hero.kind, plan.friend.kind, plan.thing
    if plan.language == "en":
        return {
            "k": article(hero.en),
            "lk": "a little " + hero.en,
            "K": hero.en,
            "j": article(friend.en),
            "o": article(thing.en),
            "p": plan.place.en,
            "n": plan.hero.name,
        }
    return {
        "k": hero.zh,
        "lk": little(hero),
        "mk": f"一{hero.measure}{hero.zh}",
        "j": friend.zh,
        "lj": little(friend),
        "o": thing.zh,
        "mo": f"一{thing.measure}{thing.zh}",
        "p": plan.place.zh.removeprefix("一个").removeprefix("一座").removeprefix("一片"),
        "n": plan.hero.name,
    }


def around(rng: random.Random, topic: str, language: str) -> str:
    """A request for a story about the topic."""
    lead = rng.choice(phrases(language).LEADS)
    if language == "en":
        end = "?" if lead.startswith(("Can", "Could", "Do")) else rng.choice((".", ".", "", "!"))
        return casual(rng, f"{lead} {topic}{end}", language)
    end = "？" if lead.endswith("吗") else rng.choice(("。", "", "", "！"))
    return str(lead.replace("|", topic)) + end


def request(rng: random.Random, plan: Plan, forms: str = "k ko ko ko kj o kp kn kno") -> str:
    """A request that fits the plan; `forms` are the keys of TOPICS to choose from."""
    topic = rng.choice(phrases(plan.language).TOPICS[rng.choice(forms.split())])
    return around(rng, topic.format(**topic_words(plan)), plan.language)
