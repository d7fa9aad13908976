"""A context on a model: the key/value cache, and the batches that are decoded with it."""

from __future__ import annotations

import ctypes
import logging
import sys
from dataclasses import dataclass, fields
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import numpy as np
from numpy.typing import NDArray

from cllm.engine.llama.arrays import Bytes, FloatArray, IntArray
from cllm.engine.llama.backend import LoadError, log_router, reason
from cllm.engine.llama.held import held
from cllm.engine.llama.model import Model
from cllm.engine.sharing import AdapterSet

_log = logging.getLogger("cllm.llama")

DONE, NO_ROOM, INTERRUPTED = 0, 1, 2
"""What llama_decode returns; NO_ROOM: the batch does not fit into the cache."""

_FLASH_ATTN = {
    "auto": C.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": C.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": C.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
# enum ggml_type (ggml.h); the Python names stop short of bf16.
_GGML_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}

_PARTIAL = C.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY

# llama.cpp asks between two operations whether to stop. strlen() of the buffer answers: above 0
# once interrupt() has written to it. It needs no interpreter lock.
_libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
_is_filled = ctypes.cast(_libc.strlen, C.ggml_abort_callback)

_get_logits = held(C.llama_get_logits, ctypes.c_void_p)
_set_n_threads = held(C.llama_set_n_threads)
_seq_rm = held(C.llama_memory_seq_rm)
_seq_cp = held(C.llama_memory_seq_cp)
_seq_pos_min = held(C.llama_memory_seq_pos_min)
_seq_pos_max = held(C.llama_memory_seq_pos_max)
_state_seq_get_size = held(C.llama_state_seq_get_size)


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions are encoded; None: as the model says. scaling: enum llama_rope_scaling_type."""

    scaling: int | None = None
    freq_base: float | None = None
    freq_scale: float | None = None
    orig_ctx: int | None = None
    ext_factor: float | None = None
    attn_factor: float | None = None
    beta_slow: float | None = None
    beta_fast: float | None = None

    def apply(self, params: Any) -> None:
        """Set the parameters of a context."""
        for name in fields(self):
            value = getattr(self, name.name)
            if value is not None:
                setattr(params, _ROPE_PARAMS[name.name], value)


_ROPE_PARAMS = {
    "scaling": "rope_scaling_type",
    "freq_base": "rope_freq_base",
    "freq_scale": "rope_freq_scale",
    **{
        name: f"yarn_{name}"
        for name in ("orig_ctx", "ext_factor", "attn_factor", "beta_slow", "beta_fast")
    },
}


class Batch:
    """Tokens for one llama_decode; arrays that numpy and C share, filled by slices."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.token: IntArray = np.zeros(capacity, dtype=np.int32)
        self.pos: IntArray = np.zeros(capacity, dtype=np.int32)
        self.seq: IntArray = np.zeros(capacity, dtype=np.int32)
        self.output: NDArray[np.int8] = np.zeros(capacity, dtype=np.int8)
        # Writing a few items takes less time through these, most of all after a decode.
        arrays = (self.token, self.pos, self.seq, self.output)
        self.views: tuple[memoryview, ...] = tuple(each.data for each in arrays)
        self._one: IntArray = np.ones(capacity, dtype=np.int32)
        # Each token belongs to one sequence: seq_id[i] points at seq[i].
        self._seq_pointers = self.seq.ctypes.data + 4 * np.arange(capacity, dtype=np.uint64)
        self._struct = C.llama_batch()
        self._struct.token = self.token.ctypes.data_as(C.llama_token_p)
        self._struct.pos = self.pos.ctypes.data_as(ctypes.POINTER(C.llama_pos))
        self._struct.n_seq_id = self._one.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._struct.seq_id = self._seq_pointers.ctypes.data_as(
            ctypes.POINTER(ctypes.POINTER(C.llama_seq_id))
        )
        self._struct.logits = self.output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def as_struct(self, count: int) -> Any:
        """The C struct over the first `count` tokens."""
        self._struct.n_tokens = count
        return self._struct


class Context:
    """A key/value cache and the compute buffers around a model; raises LoadError as Model does.

    n_ctx: tokens that the cache holds in all sequences together.
    on_device: whether a GPU may compute and hold the cache.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_seq: int,
        n_batch: int,
        n_ubatch: int,
        n_threads: int,
        n_threads_batch: int,
        flash_attn: str,
        type_k: str,
        type_v: str,
        kv_unified: bool,
        n_outputs: int | None = None,
        pooling: int | None = None,
        rope: Rope | None = None,
        kv_offload: bool = True,
        swa_full: bool = True,
    ) -> None:
        """n_outputs: maximum rows of logits in a batch; None: one per sequence.
        pooling: enum llama_pooling_type, for a context that returns vectors instead of logits.
        """
        self._handle: int | None = None
        self.n_vocab = model.vocab.n_tokens
        self._run = C.llama_decode if model.has_decoder else C.llama_encode
        params = C.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_seq_max = n_seq
        params.n_batch = n_batch
        params.n_ubatch = n_ubatch
        # A few rows of logits, not one per token: with a vocabulary of 151 936 tokens,
        # a compute buffer for 512 rows would take 300 MB that nothing uses.
        params.n_outputs_max = n_outputs or n_seq
        if pooling is not None:
            params.embeddings = True
            params.pooling_type = pooling
            params.n_outputs_max = n_batch  # every token has a vector
        params.n_threads = n_threads
        params.n_threads_batch = n_threads_batch
        params.flash_attn_type = _FLASH_ATTN[flash_attn]
        params.type_k = _GGML_TYPES[type_k]
        params.type_v = _GGML_TYPES[type_v]
        params.kv_unified = kv_unified
        params.offload_kqv = kv_offload
        params.swa_full = swa_full
        if rope is not None:
            rope.apply(params)
        params.no_perf = True
        with log_router.capture() as errors:
            handle = C.llama_init_from_model(model.handle, params)
            if not handle:
                raise LoadError(reason(errors))
        self._handle = handle
        # Without a GPU llama_decode has computed everything when it returns.
        self.on_device = bool(C.llama_supports_gpu_offload())
        self._synchronize = C.llama_synchronize if self.on_device else held(C.llama_synchronize)
        self._known_adapters = model.adapters
        self._adapters: AdapterSet = ()
        self._interrupt = ctypes.create_string_buffer(2)
        C.llama_set_abort_callback(handle, _is_filled, self._interrupt)
        self._logits_at = 0
        self._logits: FloatArray = np.empty((0, self.n_vocab), dtype=np.float32)
        self._memory = C.llama_get_memory(handle)
        self.copies_pending = False
        self._split_cache = not kv_unified
        self.n_ctx = int(C.llama_n_ctx(handle))
        self.n_ctx_seq = int(C.llama_n_ctx_seq(handle))
        self.n_seq = n_seq
        self.n_batch = int(C.llama_n_batch(handle))
        self.n_ubatch = int(C.llama_n_ubatch(handle))

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """How many threads compute a single token, and how many several."""
        _set_n_threads(self._handle, n_threads, n_threads_batch)

    def adapt(self, adapters: AdapterSet) -> bool:
        """Compute with these LoRA adapters from now on; whether that is a change.

        A change makes the next decode slower by the time that its graph takes to be built.
        """
        if adapters == self._adapters:
            return False
        count = len(adapters)
        handles = (C.llama_adapter_lora_p_ctypes * max(1, count))()
        scales = (ctypes.c_float * max(1, count))()
        for at, (index, scale) in enumerate(adapters):
            handles[at] = ctypes.cast(self._known_adapters[index], C.llama_adapter_lora_p_ctypes)
            scales[at] = scale
        C.llama_set_adapters_lora(self._handle, handles, count, scales)
        self._adapters = adapters
        return True

    def decode(self, batch: Batch, count: int) -> int:
        """llama_decode: DONE, NO_ROOM (nothing changed), INTERRUPTED, else failed.

        After the last two the memory may hold a part of the batch.
        """
        with log_router.capture() as errors:
            code = int(self._run(self._handle, batch.as_struct(count)))
            self._synchronize(self._handle)
        self.copies_pending = False
        if code not in (DONE, NO_ROOM, INTERRUPTED):  # llama.cpp logs errors for these too
            for line in errors:
                _log.error("%s", line)
        return code

    def interrupt(self) -> None:
        """Let decode() return INTERRUPTED soon, and at once from now on. Any thread."""
        self._interrupt[0] = b"x"

    def resume(self) -> None:
        """Let decode() run again."""
        self._interrupt[0] = b"\0"

    def logits(self, rows: int) -> FloatArray:
        """The last decode's output rows in batch order, [rows, n_vocab]; valid until the next.

        It is llama.cpp's own buffer: samplers see what is written to it.
        """
        address = _get_logits(self._handle)
        if not address:
            raise RuntimeError("llama.cpp has no logits")
        if address != self._logits_at or rows > len(self._logits):
            buffer = (ctypes.c_float * (rows * self.n_vocab)).from_address(address)
            # Of numpy's own type: a memoryview cannot write to arrays of the type as_array() gives.
            flat = np.frombuffer(memoryview(buffer), dtype=np.float32)
            self._logits = flat.reshape(rows, self.n_vocab)
            self._logits_at = address
        return self._logits[:rows]

    def pooled(self, seq: int, width: int) -> FloatArray:
        """The vector, or the scores, of a sequence in the last decode, [1, width]; a copy."""
        pointer = C.llama_get_embeddings_seq(self._handle, seq)
        if not pointer:
            raise RuntimeError("llama.cpp has no embedding")
        return np.array(np.ctypeslib.as_array(pointer, (1, width)), dtype=np.float32)

    def token_vectors(self, count: int, width: int) -> FloatArray:
        """Without pooling: the vectors of the last decode's tokens, [count, width]; a copy."""
        pointer = C.llama_get_embeddings(self._handle)
        if not pointer:
            raise RuntimeError("llama.cpp has no embeddings")
        return np.array(np.ctypeslib.as_array(pointer, (count, width)), dtype=np.float32)

    def warm_up(self, batch: Batch, token: int) -> int:
        """Decode one token to touch weights and buffers; leaves the cache empty."""
        batch.token[0], batch.pos[0], batch.seq[0], batch.output[0] = token, 0, 0, 1
        C.llama_set_warmup(self._handle, True)
        code = self.decode(batch, 1)
        C.llama_synchronize(self._handle)
        C.llama_set_warmup(self._handle, False)
        self.clear()
        return code

    def clear(self) -> None:
        """Forget every sequence; does nothing for a context without memory."""
        C.llama_memory_clear(self._memory, False)

    def remove(self, seq: int, start: int = -1) -> bool:
        """Forget a sequence from position `start` on; False if the memory cannot keep a part."""
        return bool(_seq_rm(self._memory, seq, start, -1))

    def copy(self, source: int, target: int) -> None:
        """Copy a whole sequence; a cache that is split by sequence cannot copy a part.

        Such a cache copies the data at the next decode (copies_pending). Until then, do not
        restore into the source and do not save the target.
        """
        _seq_cp(self._memory, source, target, -1, -1)
        self.copies_pending = self._split_cache

    @property
    def can_shift(self) -> bool:
        """Whether the positions of cached tokens can be changed."""
        return bool(C.llama_memory_can_shift(self._memory))

    def shift(self, seq: int, start: int, count: int) -> None:
        """Forget `count` positions from `start` on, and move those after them to their place.

        The next decode rotates the keys (copies_pending). Cells that other sequences share after
        `start` would move for these too.
        """
        C.llama_memory_seq_rm(self._memory, seq, start, start + count)
        C.llama_memory_seq_add(self._memory, seq, start + count, -1, -count)
        self.copies_pending = True

    def first_position(self, seq: int) -> int:
        """The lowest position still in memory (above 0: windowed or recurrent); -1: empty."""
        return int(_seq_pos_min(self._memory, seq))

    def last_position(self, seq: int) -> int:
        """The highest position in memory; -1: empty."""
        return int(_seq_pos_max(self._memory, seq))

    def state_size(self, seq: int) -> int:
        """Bytes that save() returns."""
        return int(_state_seq_get_size(self._handle, seq))

    def save(self, seq: int, data: Bytes | None = None) -> Bytes | None:
        """Copy a sequence's state out of the memory; None if llama.cpp cannot.

        data: the target, state_size() bytes; None: allocate one.
        """
        if data is None:
            data = np.empty(self.state_size(seq), dtype=np.uint8)
        written = C.llama_state_seq_get_data(self._handle, _bytes_of(data), data.size, seq)
        return data if written == data.size else None

    def restore(self, seq: int, data: Bytes) -> bool:
        """Replace a sequence by saved data; False if it does not fit or has another layout."""
        with log_router.capture():
            return bool(C.llama_state_seq_set_data(self._handle, _bytes_of(data), data.size, seq))

    def checkpoint_size(self, seq: int) -> int:
        """Bytes that checkpoint() returns."""
        return int(C.llama_state_seq_get_size_ext(self._handle, seq, _PARTIAL))

    def checkpoint(self, seq: int) -> Bytes | None:
        """Copy the part of a sequence's state that cannot be cut; None if llama.cpp cannot."""
        data = np.empty(self.checkpoint_size(seq), dtype=np.uint8)
        written = C.llama_state_seq_get_data_ext(
            self._handle, _bytes_of(data), data.size, seq, _PARTIAL
        )
        return data if written == data.size else None

    def return_to(self, seq: int, data: Bytes, length: int) -> bool:
        """Cut a sequence to `length` tokens, of which checkpoint() gave the data.

        Attention still holds these tokens, or there is none. After False the memory is in doubt.
        """
        with log_router.capture():
            size = C.llama_state_seq_set_data_ext(
                self._handle, _bytes_of(data), data.size, seq, _PARTIAL
            )
        return bool(size) and self.remove(seq, length) and self.last_position(seq) == length - 1

    def close(self) -> None:
        """Free the cache and the buffers."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_free(handle)


def _bytes_of(data: Bytes) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
