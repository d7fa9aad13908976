"""How many prompt tokens a step reads next to running streams, and which prompt comes first.

Pure policy: it takes the cost of steps and returns numbers.
"""

from __future__ import annotations

_AUTO_STEPS = 5.0  # the time between two tokens, in decode steps, if not configured
_AUTO_LEAST_S = 0.1  # the minimum: a reader does not notice it
_ALONE_S = 1.0  # of a step without generating sequences: a new arrival waits this long
_TOGETHER_S = 10.0  # of reading prompts before all of them begin to generate, at most
_BATCH_S = 20.0  # the same if one batch can hold them
_HELD_S = 2.0  # the same while streams wait for it
_LEAST_TOKENS = 8  # of prompts in a step: smaller products cost as much
_MEMORY = 0.9  # weight of the past at each observation


class Pacer:
    """Learns what a step costs and bounds the prompt tokens in it.

    A step takes the time of its generating sequences (linear in their number) plus the time of
    its prompt tokens (linear in theirs); llama.cpp evaluates the two parts one after the other.
    """

    __slots__ = ("_decode", "_max_itl", "_prompt")

    def __init__(self, max_itl: float | None) -> None:
        """max_itl: limit in seconds on the gap between two tokens of a stream; None: auto."""
        self._max_itl = max_itl
        self._decode = _Line(flat=True)
        # The first step of a process with a prompt often takes several times as long as later ones.
        self._prompt = _Line(flat=False, forgets=True)

    def observe(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step: its generating sequences, its prompt tokens and its time."""
        if not prompt_tokens:
            self._decode.add(decoding, seconds)
        elif not decoding:
            self._prompt.add(prompt_tokens, seconds)
        elif self._decode.known:
            self._prompt.add(prompt_tokens, max(0.0, seconds - self._decode.at(decoding)))

    def budget(self, decoding: int, waiting: int, least_alone: int) -> int:
        """Prompt tokens for the next step next to `decoding` generating sequences.

        Prompts always get at least as much time as the streams, so that they progress. waiting:
        prompts to read; if there are more of them than streams, and no time is configured, a step
        may take as long as without streams. least_alone: tokens that are evaluated efficiently at
        once: the minimum without generating sequences, and the result while costs are unknown.
        """
        prompt = self._prompt
        if not decoding:
            return max(least_alone, int(prompt.inverse(_ALONE_S))) if prompt.known else least_alone
        if not prompt.known:
            return _LEAST_TOKENS
        step = self._decode.at(decoding) if self._decode.known else 0.0
        target = self._max_itl
        if target is None:
            target = max(_AUTO_LEAST_S, _AUTO_STEPS * step)
            if waiting > decoding:
                target = max(target, _ALONE_S)
        return max(_LEAST_TOKENS, int(prompt.inverse(max(target - step, step))))

    def begin_together(self, tokens: int, streams: int, one_batch: bool = False) -> bool:
        """Whether prompts of so many tokens in all, more than streams, begin to generate together.

        Not if a gap is configured, which keeps the first ones generating meanwhile. one_batch:
        whether a batch can hold them.
        """
        most = _HELD_S if streams else _BATCH_S if one_batch else _TOGETHER_S
        return self._max_itl is None and (self.prompt_s(tokens) or 0.0) <= most

    def step_s(self, decoding: int) -> float | None:
        """Seconds of a step with only this number of generating sequences; None: unknown."""
        return self._decode.at(decoding) if self._decode.known else None

    def prompt_s(self, tokens: int) -> float | None:
        """Seconds that evaluating some prompt tokens takes; None: unknown."""
        return self._prompt.at(tokens) if self._prompt.known else None

    def due(self, arrived: float, pending: int) -> float:
        """A prompt's deadline: arrival plus the time it still needs alone; earliest deadline first.

        Shorter prompts go first, but no prompt is overtaken by one that arrives after its own
        deadline: a stream of short prompts cannot starve a long one.
        """
        return arrived + self._prompt.at(pending) if self._prompt.known else arrived


class _Line:
    """Seconds as fixed + each * count, fitted to observations, the newest with the most weight."""

    __slots__ = ("_flat", "_forgets", "_n", "_t", "_x", "_xt", "_xx")

    def __init__(self, flat: bool, forgets: bool = False) -> None:
        """flat: whether all counts as fixed while only one count has been observed.

        forgets: whether the second observation replaces the first.
        """
        self._flat = flat
        self._forgets = forgets
        self._n = self._x = self._t = self._xx = self._xt = 0.0

    @property
    def known(self) -> bool:
        return self._n > 0

    def add(self, count: int, seconds: float) -> None:
        keep = _MEMORY
        if self._forgets and self.known:
            keep, self._forgets = 0.0, False
        self._n = self._n * keep + 1
        self._x = self._x * keep + count
        self._t = self._t * keep + seconds
        self._xx = self._xx * keep + count * count
        self._xt = self._xt * keep + count * seconds

    def at(self, count: float) -> float:
        fixed, each = self._fit()
        return fixed + each * count

    def inverse(self, seconds: float) -> float:
        """The count that takes this long; 0 if the fixed part alone takes longer."""
        fixed, each = self._fit()
        return max(0.0, seconds - fixed) / each

    def _fit(self) -> tuple[float, float]:
        mean_x, mean_t = self._x / self._n, self._t / self._n
        spread = self._xx / self._n - mean_x * mean_x
        if spread > 0.1 * mean_x * mean_x:
            each = (self._xt / self._n - mean_x * mean_t) / spread
            fixed = mean_t - each * mean_x
            if each > 0 and fixed >= 0:
                return fixed, each
        if self._flat:
            return mean_t, 0.0
        return 0.0, max(mean_t / mean_x, 1e-9)
