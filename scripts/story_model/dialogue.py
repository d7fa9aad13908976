"""Conversations about stories: every request, question and answer follows from a story state."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from . import noise
from .asking import around, casual, phrases, request, topic_words
from .lexicon import KINDS, NAMES_EN, NAMES_ZH, THINGS
from .plan import Plan, Wanted, invented_name, make_plan
from .surfaces import article, capitalized, surfaces, tell_titled

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; `role` is "system", "user" or "assistant"."""

    role: str
    text: str


@dataclass(slots=True)
class Conversation:
    """The turns so far, and the assistant's stories in them."""

    language: str
    turns: list[Turn] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)

    def say(self, question: str, answer: str) -> None:
        """Add a user turn and its answer."""
        self.turns += (Turn(USER, question), Turn(ASSISTANT, answer))


def story_plan(rng: random.Random, language: str, *, held_out: bool = False) -> Plan:
    """A plan; its friend is sometimes chosen first, so that any pair of kinds occurs."""
    if rng.random() < 0.7:
        return make_plan(rng, language, held_out=held_out)
    hero, friend = rng.sample(KINDS, 2)
    return make_plan(rng, language, Wanted(hero=hero, friend=friend), held_out=held_out)


def _unknown(rng: random.Random, language: str) -> str:
    known = {k.en for k in KINDS} | {t.en for t in THINGS}
    known |= {k.zh for k in KINDS} | {t.zh for t in THINGS}
    while True:
        noun = noise.unknown_noun(rng, language)
        if noun not in known and noun.split(" ")[-1] not in known:
            return noun


def _ask_for_story(rng: random.Random, talk: Conversation, plan: Plan, *, first: bool) -> None:
    """A request and the story; sometimes the request names a subject outside the lexicon."""
    table, language = phrases(plan.language), plan.language
    told = tell_titled(plan, rng)
    dice = rng.random()
    if dice < 0.08:
        words = topic_words(plan)
        joint = " and " if language == "en" else "和"
        unknown = _unknown(rng, language)
        topic = rng.choice((unknown, unknown, words["k"] + joint + unknown))
        if rng.random() < 0.15:
            topic = unknown + joint + words["o"]
        talk.say(around(rng, topic, language), rng.choice(table.UNKNOWN_TOPIC) + "\n\n" + told)
    elif dice < 0.21:
        asked = table.ANY_STORY if first or rng.random() < 0.3 else table.ANOTHER
        talk.say(casual(rng, rng.choice(asked), language), told)
    else:
        asked = request(rng, plan)
        misspelt = language == "en" and rng.random() < 0.15
        talk.say(noise.misspelt(rng, asked) if misspelt else asked, told)
    talk.stories.append(told)


def sequel(rng: random.Random, plan: Plan, stage: int) -> str:
    """What happened after the story or after the first sequel, or that there is no more."""
    table = phrases(plan.language)
    if stage >= len(table.SEQUELS):
        return str(rng.choice(table.NO_MORE))
    lines = (rng.choice(group).format(**surfaces(plan)) for group in table.SEQUELS[stage])
    return (" " if plan.language == "en" else "").join(capitalized(line) for line in lines)


def question(rng: random.Random, plan: Plan, key: str) -> tuple[str, str]:
    """A phrasing of the question `key` about the plan, and the answer."""
    table = phrases(plan.language)
    words = surfaces(plan) | {"S": table.DEEDS.get(plan.skill, "")}
    asked, answers = table.QUESTIONS[key]
    answer = rng.choice(answers.get(plan.plot) or answers["*"])
    return (
        casual(rng, rng.choice(asked).format(**words), plan.language),
        capitalized(answer.format(**words)),
    )


def _absent(rng: random.Random, plan: Plan) -> tuple[str, str]:
    """A question about a character that is not in the story."""
    table, names = phrases(plan.language), [plan.hero.name, plan.friend.name]
    if rng.random() < 0.5:
        pool = NAMES_ZH if plan.language == "zh" else (*NAMES_EN["he"], *NAMES_EN["she"])
        other = rng.choice(
            [n for n in (*pool, invented_name(rng, plan.language)) if n not in names]
        )
        forms = (
            ("Who is {X}?", "Where is {X}?")
            if plan.language == "en"
            else ("{X}是谁？", "{X}在哪里？")
        )
        return rng.choice(forms).format(X=other), table.ABSENT[0].format(X=other)
    kind = rng.choice([k for k in KINDS if k not in (plan.hero.kind, plan.friend.kind)])
    if plan.language == "en":
        asked = rng.choice(("Is there {X} in it?", "Is there {X} in the story?"))
        return asked.format(X=article(kind.en)), table.ABSENT[1].format(X=kind.en)
    asked = rng.choice(("故事里有{X}吗？", "有没有{X}？", "里面有{X}吗？"))
    return asked.format(X=kind.zh), table.ABSENT[1].format(X=kind.zh)


def _small_talk(rng: random.Random, talk: Conversation) -> None:
    table, language = phrases(talk.language), talk.language
    asked, answers = rng.choice(
        (
            (table.GREETINGS, table.GREETING_REPLIES),
            (table.GREETINGS, table.GREETING_REPLIES),
            (table.WHO_ARE_YOU, table.WHO_ARE_YOU_REPLIES),
        )
    )
    talk.say(casual(rng, rng.choice(asked), language), rng.choice(answers))


def _off_topic(rng: random.Random, talk: Conversation) -> None:
    talk.say(noise.off_topic(rng, talk.language), rng.choice(phrases(talk.language).LIMITS))


def _follow_up(rng: random.Random, talk: Conversation, plan: Plan, stage: int) -> int:
    """One turn after a story; return the number of sequels."""
    table, language = phrases(plan.language), plan.language
    dice = rng.random()
    if dice < 0.62:
        talk.say(
            *question(rng, plan, rng.choice([*table.QUESTIONS, "who", "who", "want", "where"]))
        )
    elif dice < 0.82:
        asked = rng.choice(table.NEXT).format(**surfaces(plan))
        talk.say(casual(rng, asked, language), sequel(rng, plan, stage))
        stage += 1
    elif dice < 0.87:
        asked = rng.choice(table.UNANSWERABLE).format(**surfaces(plan))
        talk.say(asked, rng.choice(table.UNSAID))
    elif dice < 0.91:
        talk.say(*_absent(rng, plan))
    elif dice < 0.96:
        _off_topic(rng, talk)
    else:
        _small_talk(rng, talk)
    return stage


def _before_any_story(rng: random.Random, talk: Conversation) -> None:
    """A question about a story before there is one."""
    table = phrases(talk.language)
    words = surfaces(make_plan(rng, talk.language))
    key = rng.choice([*table.QUESTIONS, "next", "who", "where"])
    asked = table.NEXT if key == "next" else table.QUESTIONS[key][0]
    talk.say(rng.choice(asked).format(**words), rng.choice(table.NO_STORY_YET))


def _close(rng: random.Random, talk: Conversation, plan: Plan) -> Plan | None:
    """Praise, thanks or goodbye; a yes to the offer of another story makes a new plan."""
    table, language = phrases(talk.language), talk.language
    dice = rng.random()
    if dice < 0.35:
        talk.say(casual(rng, rng.choice(table.PRAISE), language), rng.choice(table.PRAISE_REPLIES))
        if rng.random() < 0.7:
            if rng.random() < 0.3:
                talk.say(rng.choice(table.NO), rng.choice(table.NO_REPLY))
                return None
            new = story_plan(rng, language)
            told = tell_titled(new, rng)
            talk.say(casual(rng, rng.choice(table.YES), language), told)
            talk.stories.append(told)
            return new
    elif dice < 0.7:
        talk.say(casual(rng, rng.choice(table.THANKS), language), rng.choice(table.THANKS_REPLIES))
    else:
        talk.say(casual(rng, rng.choice(table.BYES), language), rng.choice(table.BYE_REPLIES))
    return None


def _system(rng: random.Random, talk: Conversation) -> None:
    dice = rng.random()
    if dice < 0.15:
        talk.turns.append(Turn(SYSTEM, rng.choice(phrases(talk.language).SYSTEMS)))
    elif dice < 0.3:
        talk.turns.append(Turn(SYSTEM, noise.instructions(rng, talk.language)))


def short_talk(rng: random.Random, language: str) -> Conversation:
    """A conversation without a story: small talk, limits, questions before a story."""
    talk = Conversation(language)
    _system(rng, talk)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        maker = rng.choices((_small_talk, _off_topic, _before_any_story), (3, 8, 2))[0]
        maker(rng, talk)
        if rng.random() < 0.15:
            table = phrases(language)
            talk.say(rng.choice(table.BYES), rng.choice(table.BYE_REPLIES))
    return talk


def bare_request(rng: random.Random, language: str, *, held_out: bool = False) -> Conversation:
    """One request or greeting and its answer, for use without the chat format."""
    talk = Conversation(language)
    if rng.random() < 0.2:
        _small_talk(rng, talk)
    else:
        _ask_for_story(rng, talk, story_plan(rng, language, held_out=held_out), first=True)
    return talk


def story_talk(
    rng: random.Random, language: str, *, held_out: bool = False, most_stories: int = 3
) -> Conversation:
    """A conversation around at least one story."""
    table = phrases(language)
    talk = Conversation(language)
    _system(rng, talk)
    plan = story_plan(rng, language, held_out=held_out)
    if rng.random() < 0.25:
        _small_talk(rng, talk)
    if talk.turns and talk.turns[-1].role == ASSISTANT and rng.random() < 0.4:
        told = tell_titled(plan, rng)
        talk.say(casual(rng, rng.choice(table.YES), language), told)
        talk.stories.append(told)
    else:
        _ask_for_story(rng, talk, plan, first=True)
    for episode in range(most_stories):
        stage = 0
        for _ in range(rng.choice((0, 1, 2, 3, 4, 6))):
            stage = _follow_up(rng, talk, plan, stage)
        if episode == most_stories - 1 or (most_stories < 4 and rng.random() < 0.8):
            break
        plan = story_plan(rng, language, held_out=held_out)
        _ask_for_story(rng, talk, plan, first=False)
    if rng.random() < 0.3:
        new = _close(rng, talk, plan)
        if new is not None:
            _follow_up(rng, talk, new, 0)
    return talk
