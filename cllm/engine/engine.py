"""The engine's public face: load a model, submit prompts, count tokens, look inside, close."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cllm.engine.cache.placement import Placer
from cllm.engine.cache.prefix_cache import copy_gain
from cllm.engine.cache.sessions import Sessions
from cllm.engine.cache.slot_info import SlotInfo, slot_info
from cllm.engine.config import EngineConfig
from cllm.engine.constraints.constraint import Constraint
from cllm.engine.constraints.grammars import Grammars
from cllm.engine.embedding.embedder import Embedder
from cllm.engine.embedding.embedding_scheduler import EmbeddingScheduler
from cllm.engine.embedding.ranking import PairEncoder
from cllm.engine.errors import EngineClosed, EngineError, InvalidRequest, PromptTooLong, Unsupported
from cllm.engine.generation import Completion, Generation
from cllm.engine.layout.sizing import default_cache_ram
from cllm.engine.loading.info import ModelInfo
from cllm.engine.loading.loading import Loaded, load
from cllm.engine.machine.own_process import OwnProcess
from cllm.engine.sampling.params import SamplingParams
from cllm.engine.scheduling.admission import Admission
from cllm.engine.scheduling.pacing import Pacer
from cllm.engine.scheduling.planning import Planner
from cllm.engine.scheduling.scheduler import Scheduler
from cllm.engine.scheduling.threads import Threads
from cllm.engine.sequence import Sequence as EngineSequence
from cllm.engine.speculation.drafting import Drafting, DraftPolicy
from cllm.engine.speculation.speculation import Guesser, Speculation
from cllm.engine.stats import EngineStats

_DEFAULTS = SamplingParams()


class Engine:
    """A loaded model that serves many requests at once. Make one with Engine.load().

    submit, generate, stream, cancel, tokenize, detokenize, info and stats are for any thread.
    """

    def __init__(self, loaded: Loaded) -> None:
        config = loaded.config
        self._info = loaded.info
        self._vocab = loaded.model.vocab
        self._ctx_size = loaded.info.context.ctx_size
        self._grammars = Grammars(self._vocab)
        self._shape = loaded.shape
        self._runner: Scheduler | EmbeddingScheduler
        self._sessions: Sessions | None = None
        if loaded.shape is None:
            self._runner, self._sessions = _generator(loaded)
        else:
            width = loaded.info.embedding_size or loaded.model.n_cls_out
            self._runner = EmbeddingScheduler(loaded, loaded.shape, width, config.max_queue)
        thread = threading.Thread(target=self._runner.run, name="cllm-engine", daemon=True)
        self._guard = _Guard()
        # Also runs at interpreter exit and when the engine is forgotten: freeing the model while
        # the thread decodes, or leaving the thread to a finished interpreter, would crash.
        self._finalizer = weakref.finalize(
            self,
            _release,
            self._runner,
            thread,
            self._guard,
            self._sessions,
            self._grammars,
            loaded,
        )
        self._thread = thread
        thread.start()

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: EngineConfig | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        tuning_progress: Callable[[float], None] | None = None,
        **overrides: Any,
    ) -> Engine:
        """Load a GGUF file; the file's other parts are found if it is split.

        overrides: fields of EngineConfig, over `config`. progress: called with 0.0 to 1.0 while
        the file is read; tuning_progress: so while `tune` measures.
        Raises ModelLoadError (one line with the remedy) or ValueError (a bad configuration).
        """
        config = replace(config or EngineConfig(), **overrides)
        return cls(load(Path(path), config, progress, tuning_progress))

    @property
    def _scheduler(self) -> Scheduler:
        self._guard.process.check()
        if isinstance(self._runner, Scheduler):
            return self._runner
        use = "ranks documents" if self._info.pooling == "rank" else "produces embeddings"
        raise Unsupported(f"this model only {use}; load a generative model for this request")

    @property
    def sessions(self) -> Sessions:
        """Slots saved to files and restored; raises Unsupported if the model has none."""
        self._guard.process.check()
        if self._sessions is None:
            raise Unsupported(
                "an embedding model or a reranker has no slots; load a generative model"
            )
        return self._sessions

    @property
    def embedder(self) -> Embedder:
        """What embeds or ranks; raises Unsupported if the model generates."""
        self._guard.process.check()
        if self._shape is None or isinstance(self._runner, Scheduler):
            raise Unsupported(
                "this model generates text; load an embedding model or a reranker for this request,"
                " or start this one with --pooling mean to get embeddings instead of text"
            )
        template = self._info.metadata.get("tokenizer.chat_template.rerank")

        def tokenize(name: str, text: str, parse_special: bool) -> list[int]:
            with self._guard.borrowed():
                return self._tokenize(name, text, False, parse_special)

        pairs = PairEncoder(self._vocab, template, tokenize)
        return Embedder(self, self._runner, self._shape, pairs)

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams = _DEFAULTS,
        *,
        deadline: float | None = None,
        on_update: Callable[[], None] | None = None,
        slot: int | None = None,
        fresh: bool = False,
        tenant: str = "",
    ) -> Generation:
        """Queue a prompt, text or tokens, and return at once.

        Text gets the special tokens that the model's own rules add (BOS); special tokens spelled
        out in it are text. deadline: seconds from now to the end of the generation; it is looked
        at before each step. on_update: see Generation. slot: the only one to run in.
        fresh: reuse nothing of earlier prompts. tenant: whose request it is; slots are shared
        fairly between tenants, and one tenant's requests are served in their order. A constraint
        is waited for until it is compiled. Raises InvalidRequest, PromptTooLong, QueueFull,
        CompilerUnavailable, Unsupported, EngineClosed.
        """
        if deadline is not None and not 0 < deadline < math.inf:
            raise InvalidRequest("deadline", deadline, "a positive number of seconds")
        n_slots = self._info.context.parallel
        if slot is not None and not 0 <= slot < n_slots:
            raise InvalidRequest("slot", slot, f"a slot from 0 to {n_slots - 1}")
        self._scheduler.check_open(tenant)
        with self._guard.borrowed():
            tokens = self._prompt_tokens(prompt)
            self._check_against_vocabulary(params)
            guide = self._grammars.guide(params.constraint) if params.constraint else None
        # A constraint forces tokens by itself; of each logged token the own logits are wanted.
        guesses = guide is None and params.logprobs is None
        generation = Generation(len(tokens), on_update, self._scheduler.cancel)
        self._scheduler.submit(
            EngineSequence(
                tokens,
                params,
                generation,
                self._vocab,
                self._ctx_size,
                deadline,
                guide,
                wanted_slot=slot,
                fresh=fresh,
                guesser=Guesser() if guesses and self._info.context.draft_max else None,
                tenant=tenant,
            )
        )
        return generation

    def generate(
        self, prompt: str | Sequence[int], *, deadline: float | None = None, **params: Any
    ) -> Completion:
        """Generate and wait. params: fields of SamplingParams. Raises as submit and result do."""
        generation = self.submit(prompt, SamplingParams.of(**params), deadline=deadline)
        try:
            return generation.result()
        finally:
            generation.cancel()

    def stream(
        self, prompt: str | Sequence[int], *, deadline: float | None = None, **params: Any
    ) -> Iterator[str]:
        """Generate and yield the text as it comes; closing the iterator cancels.

        Raises as submit does at once, and the generation's error at the end of its text.
        """
        ready = threading.Event()
        generation = self.submit(
            prompt, SamplingParams.of(**params), deadline=deadline, on_update=ready.set
        )
        return _follow(generation, ready)

    def check_prompt(self, prompt: str | Sequence[int]) -> None:
        """Refuse what submit would refuse.

        Raises InvalidRequest, PromptTooLong, Unsupported, EngineClosed.
        """
        _ = self._scheduler
        with self._guard.borrowed():
            self._prompt_tokens(prompt)

    def check_constraint(self, constraint: Constraint, *, wait: bool = True) -> None:
        """Refuse what submit would refuse, and keep what it compiles.

        wait: until it is compiled; else ConstraintPending is raised if it is not.
        Raises InvalidRequest, QueueFull, CompilerUnavailable, EngineClosed.
        """
        with self._guard.borrowed():
            if wait:
                self._grammars.guide(constraint)
            else:
                self._grammars.check(constraint)

    def cancel(self, generation: Generation) -> None:
        """End a generation before the next decode; what it has is kept. Same as its cancel()."""
        generation.cancel()

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Text -> tokens. add_special: BOS and EOS by the model's rules. parse_special: take
        special tokens spelled out in the text for such. Raises InvalidRequest, EngineClosed.
        """
        with self._guard.borrowed():
            return self._tokenize("text", text, add_special, parse_special)

    def detokenize(self, tokens: Sequence[int], special: bool = True) -> str:
        """Tokens -> text. special: spell out special tokens, but for the BOS and EOS that
        tokenize adds by itself. Bytes that are not UTF-8 become U+FFFD. Raises as tokenize.
        """
        with self._guard.borrowed():
            checked = self._checked_tokens("tokens", tokens)
            return self._vocab.detokenize(checked, special).decode("utf-8", "replace")

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token; control tokens are spelled out. Raises as tokenize."""
        with self._guard.borrowed():
            return [self._vocab.spelled(token) for token in self._checked_tokens("tokens", tokens)]

    def piece(self, token: int) -> bytes:
        """The bytes of one token; a control token is spelled out. Raises as tokenize."""
        with self._guard.borrowed():
            return self._vocab.spelled(self._checked_tokens("token", [token])[0])

    def control_texts(self) -> list[str]:
        """How the vocabulary's control tokens are spelled. Raises EngineClosed."""
        with self._guard.borrowed():
            return self._vocab.control_texts()

    def info(self) -> ModelInfo:
        """What is loaded and the context in force."""
        return self._info

    def stats(self) -> EngineStats:
        """Counters and gauges, as of now."""
        grammars = self._grammars
        return replace(
            self._runner.snapshot(),
            healthy=self.healthy,
            constraints_compiled=grammars.compiled,
            constraints_refused=grammars.refused,
            constraint_deaths=grammars.deaths,
        )

    def slots(self) -> list[SlotInfo]:
        """What each place for a sequence serves, or served last; as of now. Raises Unsupported."""
        return [slot_info(slot) for slot in self._scheduler.slots]

    @property
    def crowded(self) -> bool:
        """Whether a request that is submitted now has to wait for others."""
        return self._runner.crowded

    @property
    def healthy(self) -> bool:
        """Whether requests are served: not closed, the engine thread has not given up, and this
        is not a fork of the process that loaded the engine.
        """
        return (
            self._finalizer.alive
            and self._runner.failure is None
            and self._thread.is_alive()
            and self._guard.process.is_current
        )

    @property
    def failure(self) -> Exception | None:
        """What made the engine thread give up, if it did."""
        return self._runner.failure

    def close(self) -> None:
        """End every request with EngineClosed, join the engine thread, free everything.

        Ends the step in progress. Harmless when called again, and in a fork of the process that
        loaded the engine; not for on_update callbacks.
        """
        if threading.current_thread() is self._thread:
            raise EngineError("close() must not be called on the engine thread")
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise InvalidRequest("prompt", prompt, "non-empty text")
            tokens = self._tokenize("prompt", prompt, True, False)
        else:
            tokens = self._checked_tokens("prompt", prompt)
        if not tokens:
            raise InvalidRequest("prompt", prompt, "at least one token")
        if len(tokens) >= self._ctx_size:
            raise PromptTooLong(len(tokens), self._ctx_size)
        return tokens

    def _tokenize(self, name: str, text: str, add_special: bool, parse_special: bool) -> list[int]:
        try:
            return self._vocab.tokenize(text, add_special, parse_special)
        except UnicodeEncodeError as error:
            found = f"a lone surrogate at character {error.start}"
            raise InvalidRequest(name, found, "text that UTF-8 can encode") from None
        except OverflowError:
            raise InvalidRequest(name, f"{len(text)} characters", "a shorter text") from None

    def _checked_tokens(self, name: str, tokens: Sequence[int]) -> list[int]:
        n_vocab = self._vocab.n_tokens
        checked = list(tokens)
        for token in checked:
            if type(token) is not int or not 0 <= token < n_vocab:
                raise InvalidRequest(name, token, f"tokens from 0 to {n_vocab - 1}")
        return checked

    def _check_against_vocabulary(self, params: SamplingParams) -> None:
        n_vocab = self._vocab.n_tokens
        for token in params.logit_bias:
            if token >= n_vocab:
                raise InvalidRequest("logit_bias", token, f"tokens from 0 to {n_vocab - 1}")
        if params.ignore_eos:
            self._vocab.eog_tokens()  # found once, here and not on the engine thread


@dataclass(slots=True)
class _Guard:
    """Keeps the vocabulary from being freed while a thread tokenizes with it."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _borrowers: int = 0
    _closed: bool = False
    process: OwnProcess = field(default_factory=OwnProcess)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        self.process.check()
        with self._changed:
            if self._closed:
                raise EngineClosed
            self._borrowers += 1
        try:
            yield
        finally:
            with self._changed:
                self._borrowers -= 1
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._borrowers == 0)


def _generator(loaded: Loaded) -> tuple[Scheduler, Sessions]:
    config, live = loaded.config, loaded.info.context
    ctx_size, draft_max = live.ctx_size, live.draft_max
    split = not config.kv_unified
    stats = EngineStats(
        queue_limit=config.max_queue,
        slots_total=config.parallel,
        kv_cells=loaded.context.n_ctx,
    )
    placer = Placer(
        loaded.context,
        stats,
        n_slots=config.parallel,
        copy_gain=copy_gain(not split, ctx_size),
        adjacent=split,
        max_saved_bytes=default_cache_ram() if config.cache_ram is None else config.cache_ram,
        window=loaded.model.window,
        goes_back=loaded.model.goes_back,
    )
    drafting = None
    if loaded.draft is not None:
        policy = DraftPolicy(loaded.draft.size_bytes / loaded.info.size_bytes)
        drafting = Drafting(loaded.draft, policy, stats, same=split)
    planner = Planner(
        Pacer(None if config.max_itl_ms is None else config.max_itl_ms / 1000),
        Speculation(draft_max, same=split, drafting=drafting) if draft_max else None,
        loaded.batch.capacity,
        split,
    )
    shared_cells = loaded.context.n_ctx if config.kv_cells is not None else None
    admission = Admission(placer, loaded.model.vocab, stats, shared_cells)
    threads = Threads(loaded.contexts, live, stats)
    scheduler = Scheduler(loaded.context, loaded.batch, placer, admission, planner, threads, stats)
    return scheduler, Sessions(scheduler, placer, config, loaded.info.path, ctx_size)


def _release(
    runner: Scheduler | EmbeddingScheduler,
    thread: threading.Thread,
    guard: _Guard,
    sessions: Sessions | None,
    grammars: Grammars,
    loaded: Loaded,
) -> None:
    if not guard.process.is_current:
        return  # What the engine has is the other process's; this one's end frees its copy.
    runner.stop()
    if threading.current_thread() is thread:
        return  # The last reference died in a callback; the process's end frees the rest.
    if thread.ident is not None:
        thread.join()
    if sessions is not None:
        sessions.close()
    grammars.close()
    guard.close()
    loaded.close()


def _follow(generation: Generation, ready: threading.Event) -> Iterator[str]:
    try:
        while True:
            ready.clear()
            done = generation.done
            yield from generation.take()
            if done:
                break
            ready.wait()
        if generation.error is not None:
            raise generation.error
    finally:
        generation.cancel()
