"""Which tokens each slot and the host memory hold, and from which of them a prompt starts."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cllm.engine.cache.checkpoints import Checkpoint, Checkpoints
from cllm.engine.cache.radix import RadixForest
from cllm.engine.cache.saved_prefixes import Saved, SavedPrefixes
from cllm.engine.generation import Generation
from cllm.engine.sampling.params import SamplingParams
from cllm.engine.sharing import COMMON, Scope

# Tokens that a copy must save to be worth it. A copy from host memory, or in a unified cache, takes
# about 20 us a token (0.6B model) and 2 ms to begin; evaluating a token takes 2 ms.
WORTH = 16
# A copy in a split cache moves a slot's whole buffer at memory speed: this many tokens of it in the
# time that evaluating one token takes (112 KiB a token, 0.6B model).
_COPY_COST = 64
# A slot is saved to host memory only if at least this many of its tokens, and an eighth of them,
# are held nowhere else: saving costs time even if the prefix is never used again.
WORTH_SAVING = 64
_LOST_SHARE = 8

_LOOKED_AT = 4  # idle slots, for one that need not be saved


def copy_gain(split_cache: bool, ctx_size: int) -> int:
    """Tokens that a copy between slots must save to be worth it."""
    return max(2, ctx_size // _COPY_COST) if split_cache else 1


def is_worth_saving(length: int, lost: int) -> bool:
    """Whether to save a prefix of which `lost` tokens are held nowhere else."""
    return lost >= max(WORTH_SAVING, length // _LOST_SHARE)


def adds_little(length: int, shared: int) -> bool:
    """Whether a prefix is not worth keeping next to one with which it shares so many tokens."""
    return length - shared < max(1, length // _LOST_SHARE)


class Served(NamedTuple):
    """A request that was given a slot. A slot keeps this of it, not what it computed with."""

    generation: Generation
    params: SamplingParams
    tenant: str


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence of the key/value cache. It holds tokens[:length], also after its request.

    leader: another slot, whose prompt is being evaluated and whose first `promised` tokens this
    one waits for instead of evaluating them too.
    served: the request that it serves, or served last; None if its tokens may be another's. Any
        thread may read it.
    scope: of the requests that may reuse its tokens.
    moved_from: position from which on a context shift moved its tokens; None: no shift. What was
        moved was computed after tokens that are gone, so nobody else may reuse it.
    source: where its present request found the tokens that it reuses; see Generation.prefix.
    fixed: its prompt is read in parts that are not changed for others.
    marks: lengths at which reading its prompt pauses, ascending; see Placer.reached.
    """

    id: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    length: int = 0
    busy: bool = False
    last_used: int = 0
    leader: Slot | None = None
    promised: int = 0
    served: Served | None = None
    scope: Scope = COMMON
    moved_from: int | None = None
    source: str = "slot"
    marks: list[int] = field(default_factory=list)
    fixed: bool = False

    @property
    def next_mark(self) -> int:
        """The length at which reading its prompt pauses; its end, if no mark comes before."""
        return next((mark for mark in self.marks if mark > self.length), len(self.tokens))


Holder = Slot | Saved
Usable = Callable[[Holder, int], bool]


@dataclass(frozen=True, slots=True)
class _Shared:
    """What is held of a prompt: tokens by holder, and its checkpoints, the longest first."""

    lengths: dict[Holder, int]
    checkpoints: list[Checkpoint]

    def checkpoint(self, n: int) -> Checkpoint | None:
        """The longest of at most n tokens."""
        return next((c for c in self.checkpoints if c.length <= n), None)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a prompt begins: `reuse` tokens come from `source`, the slot itself if that is None.

    If `leader` is set, its first `promised` tokens are worth waiting for. checkpoint: the state at
    `reuse`, where the source's own is another. branch: the longest prefix that is held anywhere.
    """

    reuse: int
    source: Holder | Checkpoint | None = None
    leader: Slot | None = None
    promised: int = 0
    checkpoint: Checkpoint | None = None
    branch: int = 0


class PrefixCache:
    """The slots, the saved prefixes and the policy by which they are reused.

    copy_gain: tokens that a copy between slots must save to be worth it.
    split_cache: each slot has an equal part of the cache. llama_decode then evaluates only
    neighbouring slots together: 4 of 8 sequences take 41 ms as slots 0 to 3 and 57 ms as slots
    0, 2, 4, 6 (0.6B model, two cores; more cores make the difference greater).
    usable: whether the memory lets a holder's tokens be cut to the first n, without a checkpoint.
    most_busy: slots in use at once; None: all.
    """

    def __init__(
        self,
        n_slots: int,
        copy_gain: int,
        split_cache: bool,
        max_saved_bytes: int = 0,
        usable: Usable = lambda holder, n: True,
        checkpoints: Checkpoints | None = None,
        most_busy: int | None = None,
    ) -> None:
        self.most_busy = most_busy or n_slots
        self.slots = [Slot(i) for i in range(n_slots)]
        self.saved = SavedPrefixes(max_saved_bytes)
        self.checkpoints = checkpoints or Checkpoints()
        self._trees: RadixForest[Holder] = RadixForest()
        self._copy_gain = copy_gain
        self.split = split_cache
        self._usable = usable
        self._clock = 0

    @property
    def has_idle(self) -> bool:
        """Whether a request can be placed."""
        return self.busy < self.most_busy

    def choose(
        self,
        tokens: array[int],
        wanted: int | None = None,
        fresh: bool = False,
        scope: Scope = COMMON,
    ) -> tuple[Slot, Start]:
        """Choose the slot for a prompt and its start; at least one slot must be idle.

        wanted: the idle slot to take instead. fresh: use nothing of what is there. scope: what is
        held in another one is not used.

        A slot whose tokens are mostly a beginning of the prompt is continued. Otherwise the least
        recently used one (next to busy ones in a split cache) is given up, so that a common first
        sentence does not evict another client's long conversation; the shared beginning is
        copied where that pays. The prompt's last token is never reused: its evaluation gives the
        logits for the first new token.
        """
        shared = _Shared({}, []) if fresh else self._shared(tokens[:-1], scope)
        if wanted is not None:
            return self.slots[wanted], self._start(self.slots[wanted], shared)
        idle = [slot for slot in self.slots if not slot.busy]
        best = max(idle, key=lambda slot: (self._held(slot, shared), -slot.last_used, -slot.id))
        held = self._held(best, shared)
        if not held or 2 * held < best.length:
            best = self._given_up(idle)
        return best, self._start(best, shared)

    def start(self, slot: Slot) -> Start:
        """Choose anew from where a slot's tokens begin, when its leader has come far enough."""
        return self._start(slot, self._shared(slot.tokens[:-1], slot.scope))

    def _shared(self, tokens: array[int], scope: Scope) -> _Shared:
        return _Shared(self._trees.shared(tokens, scope), self.checkpoints.within(tokens, scope))

    def _held(self, holder: Holder, shared: _Shared) -> int:
        """The number of the new tokens that a holder can give now."""
        n = min(shared.lengths.get(holder, 0), holder.length)
        if not n or self._usable(holder, n):
            return n
        checkpoint = shared.checkpoint(n)
        return 0 if checkpoint is None else checkpoint.length

    def _from(self, holder: Holder, reuse: int, shared: _Shared, own: bool = False) -> Start:
        """Begin with a holder's first tokens, which are its own or to be copied."""
        as_it_is = not reuse or self._usable(holder, reuse)
        checkpoint = None if as_it_is else shared.checkpoint(reuse)
        branch = max(shared.lengths.values(), default=0)
        return Start(reuse, None if own else holder, checkpoint=checkpoint, branch=branch)

    def _start(self, slot: Slot, shared: _Shared) -> Start:
        own = self._held(slot, shared)
        best = at_own = self._from(slot, own, shared, own=True)
        for holder in sorted(shared.lengths, key=lambda holder: isinstance(holder, Saved)):
            if holder is slot or shared.lengths[holder] <= best.reuse:
                continue
            gain = self._copy_gain if isinstance(holder, Slot) else WORTH
            held = self._held(holder, shared)
            if held - own >= gain and held > best.reuse:
                best = self._from(holder, held, shared)
        if self.checkpoints.suffice and shared.checkpoints:
            longest = shared.checkpoints[0]
            if longest.length - own >= WORTH and longest.length > best.reuse:
                best = replace(best, reuse=longest.length, source=longest, checkpoint=None)
        leader = best
        for other in self.slots:
            promised = shared.lengths.get(other, 0)
            if other is slot or not other.busy or other.leader or promised <= other.length:
                continue
            if other.fixed and not self._usable(other, promised):
                continue  # it does not pause there
            worth = max(self._copy_gain, WORTH)
            if promised - best.reuse >= worth and promised > leader.promised:
                leader = replace(at_own, leader=other, promised=promised)
        return leader

    def _given_up(self, idle: list[Slot]) -> Slot:
        """The idle slot to give to a prompt that no slot has a prefix of."""
        ranks = {slot.id: self._reluctance(slot) for slot in idle}
        order = sorted(idle, key=lambda slot: ranks[slot.id])
        if len(order) > 1 and self.worth_saving(order[0]):
            neighbours = ranks[order[0].id][0]
            for slot in order[1:_LOOKED_AT]:
                if ranks[slot.id][0] == neighbours and not self.worth_saving(slot):
                    return slot
        return order[0]

    def _reluctance(self, slot: Slot) -> tuple[int, bool, int, int]:
        """The slot with the least is given to a prompt that no slot has a prefix of."""
        busy_neighbours, slots, at = 0, self.slots, slot.id
        if self.split:
            busy_neighbours = (at > 0 and slots[at - 1].busy) + (
                at + 1 < len(slots) and slots[at + 1].busy
            )
        return (-busy_neighbours, slot.length > 0, slot.last_used, slot.id)

    def worth_saving(self, slot: Slot, kept: int = 0) -> bool:
        """Whether enough of its tokens after the first `kept` are held nowhere else."""
        if slot.length - kept < WORTH_SAVING or not self.saved.max_bytes:
            return False
        shared = self._shared(slot.tokens[: slot.length], slot.scope)
        most = kept
        for holder, n in shared.lengths.items():
            if n > most and holder is not slot:
                most = max(most, self._held(holder, shared))
        return is_worth_saving(slot.length, slot.length - most)

    def coming(self, tokens: array[int], scope: Scope) -> int:
        """Leading tokens of a prompt that are held, or are being evaluated in a slot."""
        shared = self._shared(tokens[:-1], scope)
        found = [self._soon(holder, shared) for holder in shared.lengths]
        if self.checkpoints.suffice and shared.checkpoints:
            found.append(shared.checkpoints[0].length)
        return max(found, default=0)

    def _soon(self, holder: Holder, shared: _Shared) -> int:
        if isinstance(holder, Slot) and holder.busy:
            n = shared.lengths[holder]
            return n if n and self._usable(holder, n) else 0
        return self._held(holder, shared)

    def save(self, saved: Saved) -> None:
        """Keep a prefix, and drop those that it contains."""
        for holder, shared in self._trees.shared(saved.tokens, saved.scope).items():
            if isinstance(holder, Saved) and shared == holder.length and not holder.whole:
                self.drop(holder)
        self.saved.add(saved)
        self._trees.insert(saved, saved.tokens, saved.scope)

    def make_room(self, size: int, keep_spare: bool = False) -> bool:
        """Drop the least recently used entries of host memory until `size` bytes fit; False: never.

        keep_spare: as in SavedPrefixes.make_room.
        """
        dropped = self.saved.make_room(size, keep_spare)
        for entry in dropped or ():
            self._forget(entry)
        return dropped is not None

    def drop(self, entry: Saved | Checkpoint) -> None:
        """Forget a saved prefix or a checkpoint."""
        self.saved.remove(entry)
        self._forget(entry)

    def _forget(self, entry: Saved | Checkpoint) -> None:
        if isinstance(entry, Checkpoint):
            self.checkpoints.forget(entry)
        else:
            self._trees.remove(entry)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, after make_room(); too many give way, except a prompt's first."""
        checkpoints = self.checkpoints
        before = checkpoints.within(checkpoint.tokens, checkpoint.scope)
        if len(before) >= checkpoints.per_prompt:
            self.drop(self.saved.oldest(before[:-1]))
        elif len(checkpoints.entries) >= checkpoints.limit:
            self.drop(self.saved.oldest(checkpoints.entries))
        self.saved.add(checkpoint)
        checkpoints.add(checkpoint)

    def occupy(self, slot: Slot, tokens: array[int], length: int, scope: Scope = COMMON) -> None:
        """Give a slot to a request of a scope, whose `tokens` it fills from here on."""
        slot.served = None
        slot.tokens, slot.length, slot.busy, slot.scope = tokens, length, True, scope
        slot.marks, slot.fixed = [], False
        slot.moved_from = None
        self._trees.insert(slot, tokens, scope)

    def note_shift(self, slot: Slot, keep: int) -> None:
        """Note that only the first `keep` tokens of a busy slot are where they were computed."""
        slot.moved_from = keep
        self._trees.insert(slot, slot.tokens[:keep], slot.scope)

    def release(self, slot: Slot) -> None:
        """Take a slot back from its request; what it holds stays for others to reuse."""
        self._clock += 1
        slot.last_used, slot.busy, slot.leader = self._clock, False, None
        self._trees.insert(slot, slot.tokens[: slot.length], slot.scope)

    def fill(self, slot: Slot, tokens: array[int], scope: Scope = COMMON) -> None:
        """Note what an idle slot holds now, and in which scope; nothing if `tokens` is empty."""
        slot.served = None
        slot.tokens, slot.length, slot.scope = tokens, len(tokens), scope
        self.release(slot)

    def oldest_idle(self) -> Slot | None:
        """Return the least recently used idle slot that holds tokens; None if there is none."""
        idle = [slot for slot in self.slots if not slot.busy and slot.length]
        return min(idle, key=lambda slot: slot.last_used, default=None)

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(slot.busy for slot in self.slots)

    @property
    def held(self) -> int:
        """Tokens in all slots, idle ones included; shared cells count in each."""
        return sum(slot.length for slot in self.slots)
