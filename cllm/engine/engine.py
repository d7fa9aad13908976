"""The engine's public interface; over 400 lines, most of them say what a method takes and raises.

Load a model, submit prompts, tokenize, inspect, close.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cllm.engine.assembly import assemble, release, run
from cllm.engine.cache.sessions import Sessions
from cllm.engine.cache.slot_info import SlotInfo, slot_info
from cllm.engine.config import EngineConfig
from cllm.engine.constraints.constraint import Constraint
from cllm.engine.constraints.grammars import Grammars
from cllm.engine.constraints.guide import Guide
from cllm.engine.embedding.embedder import Embedder
from cllm.engine.embedding.ranking import PairEncoder
from cllm.engine.errors import EngineError, InvalidRequest, Unsupported
from cllm.engine.generation import Completion, Generation, followed
from cllm.engine.history import History, RequestRecord
from cllm.engine.info import ModelInfo
from cllm.engine.loading.loading import Loaded, load
from cllm.engine.machine.own_process import OwnProcess
from cllm.engine.machine.uninterrupted import Uninterrupted
from cllm.engine.request import Meter
from cllm.engine.sampling.params import SamplingParams
from cllm.engine.scheduling.scheduler import Scheduler
from cllm.engine.sequence import Sequence as EngineSequence
from cllm.engine.sharing import COMMON, EQUAL, Scope, Share
from cllm.engine.speculation.chance import Chance
from cllm.engine.speculation.drafter import Drafter
from cllm.engine.stats import EngineStats
from cllm.engine.text.piece_cache import Owner
from cllm.engine.text.tokenizer import Tokenizer, check_prompt_length
from cllm.engine.unloaded import Unloaded

_DEFAULTS = SamplingParams()


class Engine:
    """A loaded model that serves many requests at once. Make one with Engine.load().

    submit, generate, stream, cancel, tokenize, detokenize, info and stats are for any thread.
    """

    def __init__(self, loaded: Loaded, before: Unloaded | None = None) -> None:
        self._info = loaded.info
        self._earlier = None if before is None else before.stats()
        self._vocab = loaded.model.vocab
        self._ctx_size = loaded.info.context.ctx_size
        self._grammars = Grammars(self._vocab)
        self._process = OwnProcess()
        self._tokenizer = Tokenizer(self._vocab, self._process)
        self._shape = loaded.shape
        self._shifts = loaded.config.context_shift
        self.adapters = loaded.adapters
        self._reproducible = loaded.config.reproducible
        self._synthetic_rates = loaded.config.spec_synth_rates
        parts = assemble(loaded)
        self._runner, self._sessions = parts.scheduler, parts.sessions
        if before is not None:
            self._runner.history = before.history
            self.adapters.defaults = before.adapters.defaults
        running = threading.Lock()
        running.acquire()
        arguments = self._runner, running
        thread = threading.Thread(target=run, args=arguments, name="cllm-engine", daemon=True)
        # Also runs at interpreter exit and when the engine is collected: freeing the model while
        # the thread decodes, or leaving the thread to a finished interpreter, would crash.
        self._finalizer = weakref.finalize(
            self,
            release,
            thread,
            running,
            self._process,
            self._tokenizer,
            parts,
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
        before: Unloaded | None = None,
        **overrides: Any,
    ) -> Engine:
        """Load a GGUF file; the file's other parts are found if it is split.

        overrides: fields of EngineConfig, over `config`. progress: called with 0.0 to 1.0 while
        the file is read; tuning_progress: the same while `tune` measures. before: an engine with
        the same configuration that was unloaded; this one continues its counters, its history and
        its adapters' default scales.
        Raises ModelLoadError (one line with the remedy) or ValueError (a bad configuration).
        """
        config = replace(config or EngineConfig(), **overrides)
        loaded = load(Path(path), config, progress, tuning_progress)
        with Uninterrupted():
            return cls(loaded, before)

    @property
    def _scheduler(self) -> Scheduler:
        self._process.check()
        if isinstance(self._runner, Scheduler):
            return self._runner
        use = "ranks documents" if self._info.pooling == "rank" else "produces embeddings"
        raise Unsupported(f"this model only {use}; load a generative model for this request")

    @property
    def sessions(self) -> Sessions:
        """Slots saved to files and restored; raises Unsupported if the model has none."""
        self._process.check()
        if self._sessions is None:
            raise Unsupported("this model embeds or ranks; only a model that generates has slots")
        return self._sessions

    @property
    def embedder(self) -> Embedder:
        """Embeds or ranks texts; raises Unsupported if the model generates."""
        self._process.check()
        if self._shape is None or isinstance(self._runner, Scheduler):
            raise Unsupported(
                "this model generates text and does not embed or rank; load an embedding model or "
                "a reranker, or let this one embed instead of generate with --pooling mean"
            )
        template = self._info.metadata.get("tokenizer.chat_template.rerank")
        pairs = PairEncoder(self._tokenizer, template)
        return Embedder(self._info, self._tokenizer, self._runner, self._shape, pairs)

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
        share: Share = EQUAL,
        priority: int = 0,
        scope: Scope = COMMON,
        lora: Iterable[tuple[int, float]] | None = None,
        meter: Meter | None = None,
    ) -> Generation:
        """Queue a prompt, text or tokens, and return at once.

        Text gets the special tokens that the model's own rules add (BOS); special tokens spelled
        out in it are text. deadline: seconds from now to the end of the generation; checked
        before each step. on_update: see Generation. slot: the only one to run in.
        fresh: reuse nothing of earlier prompts. tenant: the request's owner; slots are shared
        fairly between tenants, by their `share`, and one tenant's requests are served in order of
        arrival. priority: the lowest of all waiting requests is served first. scope: whose
        prefixes it reuses, and who may reuse its own. lora: ids and scales of the LoRA adapters to
        compute with; others have no effect. None: those of `adapters.defaults`. meter: is told of
        its beginning and end.
        Waits until a constraint is compiled. Raises InvalidRequest, PromptTooLong, QueueFull,
        CompilerUnavailable, Unsupported, EngineClosed.
        """
        if deadline is not None and not 0 < deadline < math.inf:
            raise InvalidRequest("deadline", deadline, "a positive number of seconds")
        n_slots = self._info.context.parallel + self._info.context.keep_sequences
        if slot is not None and not 0 <= slot < n_slots:
            raise InvalidRequest("slot", slot, f"a slot from 0 to {n_slots - 1}")
        self._scheduler.check_open(tenant, share)
        adapters = self.adapters.defaults if lora is None else self.adapters.set_of(lora)
        tokens = self._tokenizer.prompt(prompt, self._ctx_size)
        self._tokenizer.checked("logit_bias", params.logit_bias)
        self._tokenizer.checked("logprob_token_ids", params.logprob_token_ids)
        if params.ignore_eos:
            self._tokenizer.find_end_tokens()
        guide = self._guide(params.constraint, tenant) if params.constraint else None
        # A constraint forces tokens by itself; of each logged token the own logits are wanted.
        reproducible = self._reproducible or params.reproducible
        if reproducible and self._info.context.kv_unified:
            raise InvalidRequest("reproducible", True, "false, as the cache is unified")
        drafts = guide is None and params.logprobs is None and not reproducible
        generation = Generation(len(tokens), on_update, self._scheduler.cancel, meter)
        generation.adapters = adapters
        scheduler = self._scheduler
        with Uninterrupted(generation.cancel), self._tokenizer.borrowed():  # for samplers
            sequence = EngineSequence(
                tokens,
                params,
                generation,
                self._vocab,
                self._ctx_size,
                deadline,
                guide,
                wanted_slot=slot,
                fresh=fresh,
                drafter=self._drafter(params) if drafts else None,
                tenant=tenant,
                share=share,
                priority=priority,
                scope=scope._replace(adapters=adapters),
                shifts=self._shifts,
                reproducible=reproducible,
            )
            try:
                scheduler.submit(sequence)
            except BaseException:
                sequence.close()
                raise
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
        """Generate and yield text as it arrives; closing the iterator cancels.

        Raises what submit raises at once, and the generation's error after its text.
        """
        ready: SimpleQueue[None] = SimpleQueue()  # no Event, which Ctrl-C may leave locked
        generation = self.submit(
            prompt,
            SamplingParams.of(**params),
            deadline=deadline,
            on_update=partial(ready.put, None),
        )
        return followed(generation, ready)

    def renew(self, tenant: str, share: Share) -> None:
        """Give a tenant another share, also for its requests that wait; none that runs is ended.

        Its next request brings its own.
        """
        self._runner.renew(tenant, share)

    def check_prompt(self, prompt: str | Sequence[int]) -> None:
        """Check a prompt as submit does.

        Raises InvalidRequest, PromptTooLong, Unsupported, EngineClosed.
        """
        _ = self._scheduler
        self._tokenizer.prompt(prompt, self._ctx_size)

    def check_prompt_length(self, n_tokens: int) -> None:
        """Check a prompt of `n_tokens` tokens, all from tokenize, as submit does.

        Raises InvalidRequest, PromptTooLong, Unsupported.
        """
        _ = self._scheduler
        check_prompt_length(n_tokens, self._ctx_size)

    def check_constraint(
        self, constraint: Constraint, *, wait: bool = True, keep: bool = True, tenant: str = ""
    ) -> None:
        """Check a constraint as submit does; what it compiles is kept.

        tenant: who asks; compilations of several tenants take turns.

        wait: until it is compiled; otherwise ConstraintPending is raised until then. keep: with
        wait=False, return only if what was compiled is still kept; otherwise it is enough that it
        can be compiled. Raises InvalidRequest, QueueFull, CompilerUnavailable, EngineClosed.
        """
        if wait:
            self._guide(constraint, tenant)
            return
        with self._tokenizer.borrowed():
            self._grammars.check(constraint, keep, tenant)

    def cancel(self, generation: Generation) -> None:
        """End a generation before the next decode; its text is kept. Same as its cancel()."""
        generation.cancel()

    def tokenize(
        self,
        text: str,
        add_special: bool = True,
        parse_special: bool = False,
        *,
        owner: Owner | None = None,
    ) -> list[int]:
        """Text -> tokens. add_special: BOS and EOS by the model's rules. parse_special:
        parse special tokens spelled out in the text. owner: whose text it is, if its pieces are
        to be remembered for this owner alone. Raises InvalidRequest, EngineClosed.
        """
        return self._tokenizer.tokenize(text, add_special, parse_special, owner=owner)

    def mark(self, text: str) -> int | None:
        """The token that a mark of a template is, if it is a control token or looks like one.

        Remembered, within bounds. Raises InvalidRequest, EngineClosed.
        """
        return self._tokenizer.mark(text)

    def detokenize(self, tokens: Sequence[int], special: bool = True) -> str:
        """Tokens -> text. special: spell out special tokens, except the BOS and EOS that
        tokenize adds by itself. Bytes that are not UTF-8 become U+FFFD. Raises as tokenize.
        """
        return self._tokenizer.detokenize(tokens, special)

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token; control tokens are spelled out. Raises as tokenize."""
        return self._tokenizer.pieces(tokens)

    def piece(self, token: int) -> bytes:
        """The bytes of one token; a control token is spelled out. Raises as tokenize."""
        return self._tokenizer.pieces([token], "token")[0]

    def eog_tokens(self) -> list[int]:
        """The tokens that end a text."""
        return [int(token) for token in self._tokenizer.vocab.eog_tokens()]

    def control_texts(self) -> list[str]:
        """How the vocabulary's control tokens are spelled. Raises EngineClosed."""
        return self._tokenizer.control_texts()

    def info(self) -> ModelInfo:
        """The loaded model and its context."""
        return self._info

    def stats(self) -> EngineStats:
        """Counters and gauges at this moment."""
        grammars = self._grammars
        now = replace(
            self._runner.snapshot(),
            healthy=self.healthy,
            constraints_compiled=grammars.compiled,
            constraints_refused=grammars.refused,
            constraint_deaths=grammars.deaths,
        )
        return now if self._earlier is None else now.after(self._earlier)

    def slots(self) -> list[SlotInfo]:
        """What each slot serves, or served last, at this moment. Raises Unsupported."""
        return [slot_info(slot) for slot in self._scheduler.slots]

    @property
    def history(self) -> History:
        """The last steps, and the requests that ended last."""
        return self._runner.history

    def waiting(self, most: int) -> list[tuple[str, int, list[RequestRecord]]]:
        """Tenants with requests that wait for a slot: the name, how many, the oldest `most`."""
        return self._runner.waiting(most)

    @property
    def crowded(self) -> bool:
        """Whether a request that is submitted now has to wait for others."""
        return self._runner.crowded

    @property
    def healthy(self) -> bool:
        """Whether requests are served: the engine is not closed, its thread runs, and this is the
        process that loaded it, not a fork.
        """
        return not self._runner.ending and self._process.is_current

    @property
    def failure(self) -> Exception | None:
        """The error that ended the engine thread, if one did."""
        return self._runner.failure

    def close(self) -> None:
        """End every request with EngineClosed, join the engine thread, free everything.

        Ends the step in progress. Does nothing when called again, or in a fork of the process
        that loaded the engine. Must not be called from an on_update callback.
        """
        if threading.current_thread() is self._thread or self._runner.in_callback:
            raise EngineError("close() must not be called on the engine thread")
        pending = self._finalizer.peek()
        try:
            self._finalizer()
        except KeyboardInterrupt:
            if pending is not None:  # the next call goes on, or the exit
                _, work, arguments, _ = pending
                self._finalizer = weakref.finalize(self, work, *arguments)
            raise

    def at_rest(self) -> Unloaded:
        """What is known of this idle engine once it is closed; Engine.load continues from that."""
        return Unloaded(self._info, self.stats().resting(), self.history, self.adapters)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drafter(self, params: SamplingParams) -> Drafter | None:
        if not self._info.context.draft_max:
            return None
        rates = self._synthetic_rates
        return Drafter(Chance(rates, params.seed) if rates else None)

    def _guide(self, constraint: Constraint, tenant: str) -> Guide:
        with self._tokenizer.borrowed():
            return self._grammars.guide(constraint, tenant)
