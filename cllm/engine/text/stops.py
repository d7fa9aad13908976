"""Stop strings, found in a growing text without publishing any part of one.

An Aho-Corasick automaton (Aho & Corasick, 1975): its state is the longest suffix of the text
that begins a stop string, which is exactly what must be held back. Time is linear in the text and
in the stop strings: clients choose them, and the engine thread runs this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

_ROOT = 0


class StopMatcher:
    """Passes text through until one of the stop strings is complete.

    The stop string completed first ends the text; of several that end at the same character, the
    longest. How the text is cut into chunks makes no difference.
    Raises ValueError if a stop string is empty: it would end every text at its start.
    """

    __slots__ = ("_automaton", "_state", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._automaton = _Automaton(stops) if stops else None
        self._state = _ROOT
        self.found = ""  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return bool(self.found)

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be published now, and whether a stop string has been found.

        After a stop string nothing more is returned.
        """
        if self.found:
            return "", True
        automaton = self._automaton
        if automaton is None:
            return text, False
        before = self._state
        state, read, length = automaton.advance(before, text)
        withheld = automaton.depth[state]
        if length:
            self.found = automaton.held(state)[-length:]
            state, withheld = _ROOT, length
        self._state = state
        return automaton.text_before(before, text[:read], withheld), length > 0

    def flush(self) -> str:
        """The text held back for a stop string that did not follow; call it at the end."""
        if self._automaton is None:
            return ""
        held = self._automaton.held(self._state)
        self._state = _ROOT
        return held


class _Automaton:
    """States are prefixes of the stop strings, numbered from the root, which is the empty one."""

    __slots__ = ("_children", "_fallback", "_owner", "depth", "match")

    def __init__(self, stops: Sequence[str]) -> None:
        self._children: list[dict[str, int]] = [{}]
        self._fallback = [_ROOT]  # the state of the longest proper suffix that is also a prefix
        self._owner = [""]  # a stop string with this prefix, so that the prefix is not stored
        self.depth = [0]  # length of the prefix
        self.match = [0]  # length of the longest stop string that ends here; 0: none
        for stop in stops:
            if not stop:
                raise ValueError("a stop string must not be empty")
            self._add(stop)
        self._link()

    def _add(self, stop: str) -> None:
        state = _ROOT
        for depth, character in enumerate(stop, start=1):
            following = self._children[state].get(character)
            if following is None:
                following = self._children[state][character] = len(self.depth)
                self._children.append({})
                self._fallback.append(_ROOT)
                self._owner.append(stop)
                self.depth.append(depth)
                self.match.append(0)
            state = following
        self.match[state] = len(stop)

    def _link(self) -> None:
        waiting = deque(self._children[_ROOT].values())
        while waiting:  # breadth first: a fallback is always shorter, so already linked
            state = waiting.popleft()
            if not self.match[state]:
                self.match[state] = self.match[self._fallback[state]]
            for character, child in self._children[state].items():
                self._fallback[child] = self._step(self._fallback[state], character)
                waiting.append(child)

    def _step(self, state: int, character: str) -> int:
        while (following := self._children[state].get(character)) is None:
            if state == _ROOT:
                return _ROOT
            state = self._fallback[state]
        return following

    def advance(self, state: int, text: str) -> tuple[int, int, int]:
        """The state after `text`, the characters read, and the length of the match there, or 0."""
        step, match = self._step, self.match
        for position, character in enumerate(text, start=1):
            state = step(state, character)
            if match[state]:
                return state, position, match[state]
        return state, len(text), 0

    def held(self, state: int) -> str:
        """The characters of `state`."""
        return self._owner[state][: self.depth[state]]

    def text_before(self, state: int, text: str, withheld: int) -> str:
        """The characters of `state` and `text`, without the last `withheld` ones."""
        from_text = len(text) - withheld
        if from_text >= 0:
            return self.held(state) + text[:from_text]
        return self._owner[state][: self.depth[state] + from_text]
