"""The beats of each plot, in order: the skeleton that both languages share."""

from __future__ import annotations

from .plan import Plan

# `{obstacle}` and `{skill}` in a beat's name are filled from the plan.
SKELETONS: dict[str, tuple[str, ...]] = {
    "lost": (
        *("opening", "trait", "own", "event:{obstacle}", "feeling", "attempt:{obstacle}"),
        *("meet", "ask", "help:{skill}", "joy", "end:lost", "closing"),
    ),
    "gift": (
        *("opening", "trait", "wish:gift", "event:{obstacle}", "feeling", "attempt:{obstacle}"),
        *("meet", "ask", "help:{skill}", "joy", "end:gift", "closing"),
    ),
    "quarrel": (
        *("opening", "trait", "start:quarrel", "quarrel", "flew:quarrel", "sorry"),
        *("attempt:{obstacle}", "help:{skill}", "joy", "end:quarrel", "closing"),
    ),
    "quest": (
        *("opening", "trait", "wish:quest", "rumour:quest", "attempt:{obstacle}", "feeling"),
        *("meet", "ask", "help:{skill}", "joy", "end:quest", "closing"),
    ),
    "found": (
        *("opening", "trait", "find:found", "keep:found", "owner:found", "lament:found"),
        *("think:found", "return:found", "thanks:found", "end:found", "closing"),
    ),
    "broken": (
        *("opening", "trait", "own", "break:broken", "feeling", "mend:broken", "meet"),
        *("tool:broken", "work:broken", "joy", "end:broken", "closing"),
    ),
    "lonely": (
        *("opening", "trait", "own", "alone:lonely", "see:lonely", "invite:lonely"),
        *("hesitate:lonely", "wait:lonely", "play:lonely", "end:lonely", "closing"),
    ),
}


def beats(plan: Plan) -> tuple[str, ...]:
    """The names of the plan's beats, in the order of the story."""
    return tuple(b.format(obstacle=plan.obstacle, skill=plan.skill) for b in SKELETONS[plan.plot])
