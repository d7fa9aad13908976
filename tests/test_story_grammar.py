"""The story grammar: it accepts every story it makes, and none that contradicts itself."""

from __future__ import annotations

import random

import pytest

from scripts.story_model import asking, checker, dialogue, measures, noise, plan, surfaces
from scripts.story_model.lexicon import KINDS, OBSTACLES, THINGS

LANGUAGES = ("en", "zh")
FOX = next(k for k in KINDS if k.en == "fox")
OWL = next(k for k in KINDS if k.en == "owl")
KEY = next(t for t in THINGS if t.en == "key")


def told(language: str, seed: int, wanted: plan.Wanted | None = None) -> tuple[plan.Plan, str]:
    rng = random.Random(seed)
    state = plan.make_plan(rng, language, wanted)
    return state, surfaces.tell(state, rng)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_story_is_accepted(language: str) -> None:
    for seed in range(300):
        state, story = told(language, seed)
        verdict = checker.check(story, language)
        assert verdict.accepted, (verdict.reason, story)
        assert verdict.plot == state.plot
        assert verdict.words["H"] == state.hero.name
        assert verdict.words["F"] == state.friend.name


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_titled_story_is_accepted_only_under_its_own_title(language: str) -> None:
    rng = random.Random(1)
    state = plan.make_plan(rng, language, plan.Wanted(hero=FOX))
    other = plan.make_plan(rng, language, plan.Wanted(hero=OWL))
    story = surfaces.tell(state, rng)
    assert checker.check(f"{surfaces.title(state)}\n\n{story}", language).accepted
    assert not checker.check(f"{surfaces.title(other)}\n\n{story}", language).accepted


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_character_that_changes_its_name_is_noticed(language: str) -> None:
    for seed in range(50):
        state, story = told(language, seed)
        head, found, tail = story.rpartition(state.hero.name)
        assert found
        changed = head + ("Zaza" if language == "en" else "某某") + tail
        assert not checker.check(changed, language).accepted, changed


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_thing_that_turns_into_another_is_noticed(language: str) -> None:
    for seed in range(50):
        state, story = told(language, seed, plan.Wanted(thing=KEY))
        head, found, tail = story.rpartition(state.thing.en if language == "en" else "钥匙")
        assert found
        changed = head + ("bell" if language == "en" else "铃铛") + tail
        assert not checker.check(changed, language).accepted, changed


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_story_without_its_ending_is_noticed(language: str) -> None:
    mark = "." if language == "en" else "。"
    for seed in range(50):
        _, story = told(language, seed)
        assert not checker.check(story[: story[:-2].rindex(mark) + 1], language).accepted


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_helper_does_only_what_its_kind_can(language: str) -> None:
    for seed in range(300):
        state, _ = told(language, seed)
        if state.obstacle:
            assert state.skill in state.friend.kind.skills
            assert state.skill in OBSTACLES[state.obstacle]
            assert not set(OBSTACLES[state.obstacle]) & set(state.hero.kind.skills)


def test_a_pronoun_that_changes_is_noticed() -> None:
    changed = 0
    for seed in range(200):
        _, story = told("en", seed)
        if "everyone liked him." in story:
            changed += 1
            assert not checker.check(story.replace("liked him.", "liked her."), "en").accepted
    assert changed


def test_the_same_seed_makes_the_same_conversation() -> None:
    talks = [dialogue.story_talk(random.Random(7), "zh").turns for _ in range(2)]
    assert talks[0] == talks[1]


def test_training_never_has_a_held_out_pair() -> None:
    rng = random.Random(3)
    for _ in range(500):
        state = plan.make_plan(rng, "en")
        assert not plan.is_held_out(state.hero.kind, state.thing)
        unseen = plan.make_plan(rng, "en", held_out=True)
        assert plan.is_held_out(unseen.hero.kind, unseen.thing)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_come_from_the_story(language: str) -> None:
    rng = random.Random(5)
    for _ in range(100):
        state = plan.make_plan(rng, language)
        assert state.hero.name in dialogue.question(rng, state, "who")[1]
        assert state.friend.name in dialogue.question(rng, state, "who")[1]
        place = state.place.en if language == "en" else state.place.zh
        assert place in dialogue.question(rng, state, "where")[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_request_names_what_the_story_has(language: str) -> None:
    rng = random.Random(6)
    for _ in range(100):
        state = plan.make_plan(rng, language)
        asked = asking.request(rng, state, "ko").lower()
        wanted = (state.hero.kind, state.thing)
        assert all((w.en if language == "en" else w.zh) in asked for w in wanted)


def test_every_slot_of_every_phrase_is_known() -> None:
    for language in LANGUAGES:
        table = asking.phrases(language)
        state = plan.make_plan(random.Random(1), language)
        words = surfaces.surfaces(state) | {"S": "did it"}
        for asked, answers in table.QUESTIONS.values():
            for line in (*asked, *(a for lines in answers.values() for a in lines)):
                assert "{" not in line.format(**words)
        for line in (*table.NEXT, *table.UNANSWERABLE):
            assert "{" not in line.format(**words)


def test_noise_is_always_some_text() -> None:
    rng = random.Random(8)
    for language in LANGUAGES:
        assert all(noise.off_topic(rng, language) for _ in range(500))


def test_repetition_and_copying_are_counted() -> None:
    words = [f"word{chr(97 + i)}" for i in range(20)]
    assert measures.repeated_share([" ".join(words)]) == 0
    assert measures.repeated_share([" ".join(words[:8] * 2)]) == pytest.approx(1 / 9)
    text = " ".join(words * 3)
    copying = measures.Copying([text, "something else"], "en")
    copying.read(text.upper() + "!")
    assert copying.verbatim_share() == 0.5
    assert copying.passage_share() == 0.5
