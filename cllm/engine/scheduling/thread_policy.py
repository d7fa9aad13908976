"""The number of compute threads: fewer if threads that wait for each other slow down steps.

Pure policy: it takes the time of steps and the cores that other programs leave.
"""

from __future__ import annotations

from typing import NamedTuple

_MARGIN = 0.25  # of a core that other programs may use before fewer threads are tried
_CHANGE = 0.3  # of a core; a smaller change of what they leave does not count
_ROUNDS = 12  # maximum number of pairs of steps in a trial
_MISSES = 16  # pairs that a trial may lose to steps of different shapes
_ALIKE = 1.25  # maximum ratio of tokens of two comparable steps
# Cost of the other count divided by the cost of the current one, from this number of pairs on: a
# ratio of at most `better` ends a trial with a switch, of at least `worse` without.
_WORSE = ((1, 1.4), (2, 1.25), (3, 1.15))
_BETTER = ((1, 0.3), (2, 0.5), (3, 0.65), (5, 0.75), (8, 0.85), (_ROUNDS, 0.92))
_FREE = 2  # times in a row that all cores are free, after which all threads are used again
_FIRST_S = 2.0  # of computing before the first trial without a change
_NO_WORSE = 1.02  # suffices if other programs leave a core per thread
_PAUSE_S = 1.0  # minimum of computing between two trials
_LONGEST_PAUSE_S = 60.0
_SHARE = 0.01  # of the time that trials without a change may lose
_SHARE_WITH_NEWS = 0.05


class Shape(NamedTuple):
    """The shape of a step: its tokens, its sequences, and how many of them generate."""

    sequences: int
    generating: int
    tokens: int

    def like(self, other: Shape) -> bool:
        """Whether the time per token may be compared."""
        same = self.generating == other.generating and (
            not self.generating or self.sequences == other.sequences
        )
        few, many = sorted((self.tokens, other.tokens))
        return same and many <= few * _ALIKE


def counts(most: int) -> tuple[int, ...]:
    """The numbers of threads to try: all, one fewer, three quarters, half, ..., one."""
    halves = {most >> shift for shift in range(most.bit_length())}
    return tuple(sorted({most, most - 1, most * 3 // 4, *halves} - {0}, reverse=True))


class ThreadPolicy:
    """Compares the current number of threads with others, and changes it.

    A trial computes steps of the same shape in turns with the two counts (A B, B A, A B, ...) and
    compares their sums, so that growing contexts and periodic load of other programs cancel out.

    A trial is due when it is likely to change something: fewer threads while other programs leave
    fewer cores than there are threads, more threads at any time. It loses time if it fails, so
    pauses double, and are long enough that all trials lose at most a hundredth of the time. When
    the cores that others leave change, the next trial is due at once, or as soon as trials have
    lost less than a twentieth. On a machine without other load there is none: when twice in a row
    each of all threads has had a free core, all are used again. Steps that read prompts are seldom
    alike, so a trial would take long.
    """

    __slots__ = (
        "_clock", "_counts", "_failures", "_free", "_judged_with", "_next", "_next_with_news",
        "_spare", "_trial", "_turn", "threads",
    )  # fmt: skip

    def __init__(self, most: int) -> None:
        """most: the initial and maximum number of threads."""
        self.threads = most
        self._counts = counts(most)
        self._trial: _Trial | None = None
        self._clock = 0.0  # seconds of all steps
        self._next, self._next_with_news = _FIRST_S, 0.0  # on that clock, when a trial is due
        self._failures = 0  # trials since the last switch or change
        self._turn = 0
        self._free = 0  # times in a row that others left a core for each of all threads
        self._spare: float | None = None  # cores that other programs leave
        self._judged_with: float | None = most  # what that was at the last trial

    def note_spare(self, spare: float | None) -> None:
        """Learn how many cores other programs leave; None: unknown."""
        self._spare = spare
        if self._judged_with is None:
            self._judged_with = spare
        elif spare is not None and abs(spare - self._judged_with) > _CHANGE:
            self._judged_with = spare
            self._next = min(self._next, self._next_with_news)
            self._failures = self._turn = 0
        most = self._counts[0]
        self._free = self._free + 1 if spare is not None and spare >= most - _MARGIN else 0
        if self._free >= _FREE and self.threads < most:
            self.threads, self._trial, self._judged_with = most, None, spare
            self._failures = self._turn = 0

    def choose(self, shape: Shape) -> int:
        """The number of threads for a step."""
        if self._trial is None and self._clock >= self._next:
            other = self._candidate()
            if other is not None:
                free = self._spare is not None and self._spare >= other - _MARGIN
                self._trial = _Trial(self.threads, other, free and other > self.threads)
        return self.threads if self._trial is None else self._trial.arm(shape)

    def learn(self, shape: Shape, threads: int, seconds: float) -> None:
        """Learn the time of a step and its number of threads."""
        self._clock += seconds
        trial = self._trial
        if trial is None:
            return
        trial.note(shape, threads, seconds)
        if (better := trial.outcome()) is not None:
            self._end(trial, better)

    def _candidate(self) -> int | None:
        """The count to compare with, if any: the nearest to the free cores first."""
        now, spare = self.threads, self._spare
        lower = spare is None or spare < now - _MARGIN
        wanted = [n for n in self._counts if n > now or (n < now and lower)]
        if not wanted:
            return None
        aim = now if spare is None else spare
        wanted.sort(key=lambda n: abs(n - aim))
        return wanted[self._turn % len(wanted)]

    def _end(self, trial: _Trial, better: bool) -> None:
        self._trial = None
        pause = _PAUSE_S
        if better:
            self.threads, self._judged_with = trial.other, None  # it changes what others use
            self._failures = self._turn = 0
        else:
            self._failures, self._turn = self._failures + 1, self._turn + 1
            pause = min(_PAUSE_S * 2.0**self._failures, _LONGEST_PAUSE_S)
        self._next = self._clock + max(pause, trial.lost / _SHARE)
        self._next_with_news = self._clock + max(_PAUSE_S, trial.lost / _SHARE_WITH_NEWS)


class _Trial:
    """Steps of two counts in turns, and their cost per token."""

    __slots__ = ("_better", "_costs", "_first", "_misses", "_now", "_pairs", "lost", "other")

    def __init__(self, now: int, other: int, ties: bool) -> None:
        """ties: whether the other count wins a tie."""
        self._better = (*_BETTER, (_ROUNDS, _NO_WORSE)) if ties else _BETTER
        self._now = now
        self.other = other
        self._first: tuple[int, Shape, float] | None = None  # of the incomplete pair
        self._costs = {now: 0.0, other: 0.0}
        self._pairs = 0
        self._misses = 0
        self.lost = 0.0  # seconds, by using the other count

    def arm(self, shape: Shape) -> int:
        """The count whose turn it is."""
        if self._first is not None and not self._first[1].like(shape):
            self._first = None
            self._misses += 1
        leads, follows = (self._now, self.other)
        if self._pairs % 2:
            leads, follows = follows, leads
        return leads if self._first is None else follows

    def note(self, shape: Shape, threads: int, seconds: float) -> None:
        """Count a step computed with the count of arm()."""
        cost = seconds / shape.tokens
        if self._first is None:
            self._first = (threads, shape, cost)
            return
        first, _, first_cost = self._first
        self._first = None
        if first == threads:
            return
        self._costs[first] += first_cost
        self._costs[threads] += cost
        self._pairs += 1
        difference = cost - first_cost if threads == self.other else first_cost - cost
        self.lost += difference * shape.tokens

    def outcome(self) -> bool | None:
        """Whether the other count is better; None: undecided."""
        pairs = self._pairs
        if not pairs:
            return False if self._misses >= _MISSES else None
        ratio = self._costs[self.other] / self._costs[self._now]
        if any(pairs >= least and ratio >= worse for least, worse in _WORSE):
            return False
        if any(pairs >= least and ratio <= better for least, better in self._better):
            return True
        return False if pairs >= _ROUNDS or self._misses >= _MISSES else None
