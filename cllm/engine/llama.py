"""The only file that calls llama.cpp's C functions: small owned objects around its handles.

Every owner has close(), which may be called twice. Nothing here decides anything.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from cllm.engine.machine.huge_pages import HugePages

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
Bytes = NDArray[np.uint8]


_log = logging.getLogger("cllm.llama")

# ggml_log_level -> Python's. llama.cpp's "info" is hundreds of lines a load, and most of its
# warnings tell of choices made on purpose (a context shorter than the one trained for).
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}
_CONTINUES = 5
_ERROR = 4
_SAYS_NOTHING = ("failed to load model", "failed to initialize the context")


class _LogRouter:
    """llama.cpp's log lines -> the logger "cllm.llama"; keeps errors for exceptions.

    llama.cpp may log from any thread, and gives a line in pieces: each but the first has the
    level "continues".
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[int, tuple[int, str]] = {}  # thread -> level, unfinished line
        self._captures: list[tuple[int, deque[str]]] = []  # thread, its error lines

    def __call__(self, level: int, text: bytes | None, _user_data: object) -> None:
        piece = (text or b"").decode("utf-8", "replace")
        thread = threading.get_ident()
        with self._lock:
            level_before, line = self._pending.pop(thread, (level, ""))
            level = level_before if level == _CONTINUES else level
            line += piece
            if not line.endswith("\n"):
                self._pending[thread] = (level, line[-1000:])
                return
            captures = [c for t, c in self._captures if t == thread and level >= _ERROR]
            for capture in captures:
                capture.append(line.strip())
        if line.strip(" .\n"):
            severity = logging.DEBUG if captures else _LEVELS.get(level, logging.DEBUG)
            _log.log(severity, "%s", line.rstrip())

    @contextmanager
    def capture(self) -> Iterator[deque[str]]:
        """Collect this thread's error lines instead of logging them as errors."""
        lines: deque[str] = deque(maxlen=50)
        entry = (threading.get_ident(), lines)
        with self._lock:
            self._captures.append(entry)
        try:
            yield lines
        finally:
            with self._lock:
                self._captures = [other for other in self._captures if other is not entry]


class LoadError(OSError):
    """llama.cpp made no model or no context; the message is its reason."""


def _reason(errors: Iterable[str]) -> str:
    """The one of llama.cpp's error lines that says most: the first that names a cause."""
    lines = [line for line in errors if line]
    for line in lines:
        _, mark, cause = line.partition("error loading model: ")
        if mark and cause:
            return cause
    if not lines:
        return "llama.cpp gave no reason"
    said = [line for line in lines if not line.endswith(_SAYS_NOTHING)]
    return said[0] if said else lines[0]


log_router = _LogRouter()
# llama.cpp keeps the raw pointer: without this reference the next log line would crash.
_log_callback = C.llama_log_callback(log_router)
_backend_lock = threading.Lock()
_backend_ready = False


def init_backend() -> None:
    """Initialize llama.cpp once for the process and take over its log."""
    global _backend_ready
    with _backend_lock:
        if _backend_ready:
            return
        C.llama_log_set(_log_callback, ctypes.c_void_p(0))
        C.llama_backend_init()
        # A line logged by a C++ destructor must not call into a finished interpreter.
        atexit.register(C.llama_log_set, C.llama_log_callback(0), ctypes.c_void_p(0))
        _backend_ready = True


def version() -> str:
    """Which llama.cpp this is."""
    return str(C.llama_version().decode())


def system_info() -> str:
    """The kernels llama.cpp was built with."""
    return str(C.llama_print_system_info().decode("utf-8", "replace")).strip()


def uses_openmp() -> bool:
    """Whether llama.cpp was built to compute on OpenMP's threads."""
    return "OPENMP = 1" in system_info()


_CONTROLS = C.LLAMA_TOKEN_ATTR_CONTROL | C.LLAMA_TOKEN_ATTR_UNKNOWN


class Vocab:
    """A model's vocabulary. Thread-safe, as llama.cpp's is, for as long as the model lives."""

    def __init__(self, handle: int, adds_space: bool) -> None:
        """adds_space: whether tokenizing puts a space before a text (SentencePiece)."""
        self._handle = handle
        self._adds_space = adds_space
        self.kind = int(C.llama_vocab_type(handle))
        self.n_tokens = int(C.llama_vocab_n_tokens(handle))
        self.bos = int(C.llama_vocab_bos(handle))
        self.eos = int(C.llama_vocab_eos(handle))
        self.eot = int(C.llama_vocab_eot(handle))
        self.sep = int(C.llama_vocab_sep(handle))
        self.adds_bos = bool(C.llama_vocab_get_add_bos(handle))
        self.adds_eos = bool(C.llama_vocab_get_add_eos(handle))
        self.bos_added = self.bos if self.adds_bos else None
        self.eos_added = self.eos if self.adds_eos else None
        self.adds_sep = bool(C.llama_vocab_get_add_sep(handle))
        self._pieces: dict[int, bytes] = {}
        self._spelled: dict[int, bytes] = {}
        self._eog: IntArray | None = None

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Text -> tokens. Raises UnicodeEncodeError for lone surrogates."""
        data = text.encode("utf-8")
        room = len(data) + 16  # a token is a byte at least; special tokens come on top
        while True:
            tokens = np.empty(room, dtype=np.int32)
            pointer = tokens.ctypes.data_as(C.llama_token_p)
            count = C.llama_tokenize(
                self._handle, data, len(data), pointer, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count].tolist())
            if -count <= room:
                raise OverflowError("the text has too many tokens for llama.cpp")
            room = -count

    def token_to_piece(self, token: int, special: bool) -> bytes:
        """The bytes a token stands for; of control tokens only if `special`."""
        if not 0 <= token < self.n_tokens:
            raise IndexError(f"token {token} is not among the vocabulary's {self.n_tokens}")
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = C.llama_token_to_piece(self._handle, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        """token_to_piece(token, special=False), remembered."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.token_to_piece(token, special=False)
        return piece

    def spelled(self, token: int) -> bytes:
        """token_to_piece(token, special=True), remembered."""
        piece = self._spelled.get(token)
        if piece is None:
            piece = self._spelled[token] = self.token_to_piece(token, special=True)
        return piece

    def detokenize(self, tokens: list[int], special: bool) -> bytes:
        """Tokens -> the bytes of their text; what tokenize adds around a text is taken off.

        Unlike llama_detokenize it never tidies up spaces, so it undoes tokenize exactly.
        """
        if self.adds_bos and tokens and tokens[0] == self.bos:
            tokens = tokens[1:]
        if self.adds_eos and tokens and tokens[-1] == self.eos:
            tokens = tokens[:-1]
        text = b"".join(self.token_to_piece(token, special) for token in tokens)
        return text[1:] if self._adds_space and text.startswith(b" ") else text

    def pieces_for_llguidance(self) -> list[bytes]:
        """The bytes of all tokens as llguidance wants them; takes time."""
        control, user = C.LLAMA_TOKEN_ATTR_CONTROL, C.LLAMA_TOKEN_ATTR_USER_DEFINED
        pieces = []
        for token in range(self.n_tokens):
            piece = self.token_to_piece(token, special=True)
            attributes = C.llama_vocab_get_attr(self._handle, token)
            like_control = piece.startswith(b"<") and piece.endswith(b">")
            if attributes & control or (attributes & user and like_control):
                piece = b"\xff" + piece  # llguidance's mark: a token that no text stands for
            pieces.append(piece)
        return pieces

    def for_llguidance(self, pieces: list[bytes]) -> LLTokenizer:
        """This vocabulary for llguidance; takes time. It must not outlive the model."""
        return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,no-any-return]
            tokens=pieces,
            vocab_ptr=self._handle,
            tokenize_fptr=ctypes.cast(C._lib.llama_tokenize, ctypes.c_void_p).value,
            eos_token=self.eog_tokens().tolist(),
        )

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(C.llama_vocab_is_eog(self._handle, token))

    def eog_tokens(self) -> IntArray:
        """All tokens that end a generation."""
        if self._eog is None:
            found = [t for t in range(self.n_tokens) if C.llama_vocab_is_eog(self._handle, t)]
            self._eog = np.array(found, dtype=np.int32)
        return self._eog

    def fim_tokens(self) -> tuple[int, int, int, int, int]:
        """The tokens before prefix, suffix, middle, a repository and a file; -1: there is none."""
        v = self._handle
        return (
            C.llama_vocab_fim_pre(v),
            C.llama_vocab_fim_suf(v),
            C.llama_vocab_fim_mid(v),
            C.llama_vocab_fim_rep(v),
            C.llama_vocab_fim_sep(v),
        )

    def texts(self) -> Iterator[str]:
        """How the file spells each token, in order."""
        for token in range(self.n_tokens):
            yield C.llama_vocab_get_text(self._handle, token).decode("utf-8", "replace")

    def control_texts(self) -> list[str]:
        """How control tokens are spelled: what only parse_special finds in a text.

        Looks at every token; 50 ms for a vocabulary of 151 936.
        """
        attributes, text = C.llama_vocab_get_attr, C.llama_vocab_get_text
        found = (t for t in range(self.n_tokens) if attributes(self._handle, t) & _CONTROLS)
        return [text(self._handle, token).decode("utf-8", "replace") for token in found]


class Model:
    """Weights and vocabulary of one GGUF file; raises LoadError with llama.cpp's reason.

    What `progress` raises ends the load and is raised as it is.
    """

    def __init__(
        self,
        path: str,
        *,
        n_gpu_layers: int = 0,
        mmap: bool = True,
        mlock: bool = False,
        use_extra_bufts: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        init_backend()
        self._handle: int | None = None
        params = C.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.load_mode = {
            (True, True): C.LLAMA_LOAD_MODE_MMAP_MLOCK,
            (True, False): C.LLAMA_LOAD_MODE_MMAP,
            (False, True): C.LLAMA_LOAD_MODE_MLOCK,
            (False, False): C.LLAMA_LOAD_MODE_NONE,
        }[mmap, mlock]
        params.use_extra_bufts = use_extra_bufts

        begun, pages = False, HugePages()
        raised: BaseException | None = None

        def report(fraction: float, _user_data: object) -> bool:
            nonlocal begun, raised
            if not begun:  # everything is allocated and nothing read
                begun = True
                pages.advise()
            try:
                if progress is not None:
                    progress(fraction)
            except BaseException as error:  # ctypes would print it and forget it
                raised = error
            return raised is None

        callback = C.llama_progress_callback(report)  # referenced until the load has returned
        params.progress_callback = callback
        with log_router.capture() as errors:
            handle = C.llama_model_load_from_file(path.encode(), params)
        if raised is not None:
            if handle:
                C.llama_model_free(handle)
            raise raised
        if not handle:
            raise LoadError(_reason(errors))
        self._handle = handle
        vocab = C.llama_model_get_vocab(handle)
        by_default = C.llama_vocab_type(vocab) == C.LLAMA_VOCAB_TYPE_SPM
        says = self.metadata("tokenizer.ggml.add_space_prefix")
        self.vocab = Vocab(vocab, adds_space=says == "true" if says else by_default)
        self.n_ctx_train = int(C.llama_model_n_ctx_train(handle))
        self.n_embd = int(C.llama_model_n_embd(handle))
        self.n_layer = int(C.llama_model_n_layer(handle))
        self.n_head = int(C.llama_model_n_head(handle))
        self.n_head_kv = int(C.llama_model_n_head_kv(handle))
        self.n_params = int(C.llama_model_n_params(handle))
        self.size_bytes = int(C.llama_model_size(handle))
        self.window = int(C.llama_model_n_swa(handle))
        self.supports_rollback = not (
            C.llama_model_is_recurrent(handle) or C.llama_model_is_hybrid(handle)
        )
        self.n_embd_out = int(C.llama_model_n_embd_out(handle))
        self.n_cls_out = int(C.llama_model_n_cls_out(handle))
        self.has_encoder = bool(C.llama_model_has_encoder(handle))
        self.has_decoder = bool(C.llama_model_has_decoder(handle))
        self.diffuses = bool(C.llama_model_is_diffusion(handle))
        ftype = C.llama_ftype_name(C.llama_model_ftype(handle))
        self.ftype = ftype.decode() if ftype else "unknown"

    @property
    def handle(self) -> int:
        """The C pointer; raises RuntimeError once closed."""
        if self._handle is None:
            raise RuntimeError("the model is closed")
        return self._handle

    def metadata(self, key: str) -> str | None:
        """A scalar of the GGUF's metadata as text; None if it is not there."""
        buffer = ctypes.create_string_buffer(256)
        count = C.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count >= 0 else None

    def close(self) -> None:
        """Free the weights and the vocabulary; every Context must be closed before."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_model_free(handle)


class Batch:
    """Tokens for one llama_decode; arrays that numpy and C share, filled by slices."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.token: IntArray = np.zeros(capacity, dtype=np.int32)
        self.pos: IntArray = np.zeros(capacity, dtype=np.int32)
        self.seq: IntArray = np.zeros(capacity, dtype=np.int32)
        self.output: NDArray[np.int8] = np.zeros(capacity, dtype=np.int8)
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
    ) -> None:
        """n_outputs: most rows of logits in a batch; None: one a sequence.
        pooling: enum llama_pooling_type, for a context that gives vectors instead of logits."""
        self._handle: int | None = None
        self.n_vocab = model.vocab.n_tokens
        self._run = C.llama_decode if model.has_decoder else C.llama_encode
        params = C.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_seq_max = n_seq
        params.n_batch = n_batch
        params.n_ubatch = n_ubatch
        # One row of logits a sequence, not one a token: at 151 936 tokens of vocabulary a
        # compute buffer for 512 rows would be 300 MB that nothing uses.
        params.n_outputs_max = n_outputs or n_seq
        if pooling is not None:
            params.embeddings = True
            params.pooling_type = pooling
            params.n_outputs_max = n_batch  # of vectors every token has one
        params.n_threads = n_threads
        params.n_threads_batch = n_threads_batch
        params.flash_attn_type = _FLASH_ATTN[flash_attn]
        params.type_k = _GGML_TYPES[type_k]
        params.type_v = _GGML_TYPES[type_v]
        params.kv_unified = kv_unified
        params.no_perf = True
        with log_router.capture() as errors:
            handle = C.llama_init_from_model(model.handle, params)
            if not handle:
                raise LoadError(_reason(errors))
        self._handle = handle
        self._interrupt = ctypes.create_string_buffer(2)
        C.llama_set_abort_callback(handle, _is_filled, self._interrupt)
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
        C.llama_set_n_threads(self._handle, n_threads, n_threads_batch)

    def decode(self, batch: Batch, count: int) -> int:
        """llama_decode: DONE, NO_ROOM (nothing changed), INTERRUPTED, else failed.

        After the last two the memory may hold a part of the batch.
        """
        with log_router.capture() as errors:
            code = int(self._run(self._handle, batch.as_struct(count)))
            C.llama_synchronize(self._handle)
        self.copies_pending = False
        if code not in (DONE, NO_ROOM, INTERRUPTED):  # of those llama.cpp logs errors too
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

        It is llama.cpp's own buffer: what is written there is what is sampled from.
        """
        pointer = C.llama_get_logits(self._handle)
        if not pointer:
            raise RuntimeError("llama.cpp has no logits")
        address = ctypes.addressof(pointer.contents)
        buffer = (ctypes.c_float * (rows * self.n_vocab)).from_address(address)
        return np.ctypeslib.as_array(buffer).reshape(rows, self.n_vocab)

    def pooled(self, seq: int, width: int) -> FloatArray:
        """The vector, or the scores, of a sequence in the last decode, [1, width]; a copy."""
        pointer = C.llama_get_embeddings_seq(self._handle, seq)
        if not pointer:
            raise RuntimeError("llama.cpp has no embedding")
        return np.array(np.ctypeslib.as_array(pointer, (1, width)), dtype=np.float32)

    def token_vectors(self, count: int, width: int) -> FloatArray:
        """The vectors of the last decode's tokens where none are pooled, [count, width]; a copy."""
        pointer = C.llama_get_embeddings(self._handle)
        if not pointer:
            raise RuntimeError("llama.cpp has no embeddings")
        return np.array(np.ctypeslib.as_array(pointer, (count, width)), dtype=np.float32)

    def warm_up(self, batch: Batch, token: int) -> int:
        """Decode one token so that weights and buffers are touched; leaves the cache empty."""
        batch.token[0], batch.pos[0], batch.seq[0], batch.output[0] = token, 0, 0, 1
        C.llama_set_warmup(self._handle, True)
        code = self.decode(batch, 1)
        C.llama_synchronize(self._handle)
        C.llama_set_warmup(self._handle, False)
        self.clear()
        return code

    def clear(self) -> None:
        """Forget every sequence; harmless where there is no memory."""
        C.llama_memory_clear(self._memory, False)

    def remove(self, seq: int, start: int = -1) -> bool:
        """Forget a sequence from position `start` on; False if the memory cannot keep a part."""
        return bool(C.llama_memory_seq_rm(self._memory, seq, start, -1))

    def copy(self, source: int, target: int) -> None:
        """Copy a whole sequence; of a part, a cache that is split by sequence is not capable.

        Such a cache copies the data at the next decode (copies_pending); until then nothing may be
        restored into the source, nor the target be saved.
        """
        C.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.copies_pending = self._split_cache

    def first_position(self, seq: int) -> int:
        """The least position still in memory (more than 0: windowed or recurrent); -1: empty."""
        return int(C.llama_memory_seq_pos_min(self._memory, seq))

    def last_position(self, seq: int) -> int:
        """The greatest position in memory; -1: empty."""
        return int(C.llama_memory_seq_pos_max(self._memory, seq))

    def state_size(self, seq: int) -> int:
        """Bytes that save() returns."""
        return int(C.llama_state_seq_get_size(self._handle, seq))

    def save(self, seq: int, data: Bytes | None = None) -> Bytes | None:
        """Copy what the memory holds of a sequence; None if llama.cpp cannot.

        data: where to, state_size() bytes; None: into new memory.
        """
        if data is None:
            data = np.empty(self.state_size(seq), dtype=np.uint8)
        written = C.llama_state_seq_get_data(self._handle, _bytes_of(data), data.size, seq)
        return data if written == data.size else None

    def restore(self, seq: int, data: Bytes) -> bool:
        """Put saved data in place of a sequence; False (see save) if it does not fit or suit."""
        with log_router.capture():
            return bool(C.llama_state_seq_set_data(self._handle, _bytes_of(data), data.size, seq))

    def close(self) -> None:
        """Free the cache and the buffers."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_free(handle)


DONE, NO_ROOM, INTERRUPTED = 0, 1, 2
"""What llama_decode returns; no room: there is no place in the cache."""

# llama.cpp asks between two operations whether to stop. strlen() says whether the buffer that it
# is given is filled, and needs no interpreter for it.
_libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
_is_filled = ctypes.cast(_libc.strlen, C.ggml_abort_callback)


def _bytes_of(data: Bytes) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


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


Link = tuple[str, tuple[Any, ...]]
"""One of llama.cpp's samplers: its name in llama_sampler_init_…, and the arguments."""


def dry_link(vocab: Vocab, *numbers: float, breakers: Sequence[str]) -> Link:
    """The DRY sampler. numbers: multiplier, base, allowed length, last n."""
    texts = [text.encode("utf-8", "replace") for text in breakers]
    array = (ctypes.c_char_p * len(texts))(*texts)
    return "dry", (vocab._handle, *numbers, array, len(texts))


class SamplerChain:
    """llama.cpp's samplers, one after the other; the last one chooses."""

    def __init__(self, links: Iterable[Link]) -> None:
        params = C.llama_sampler_chain_default_params()
        params.no_perf = True
        self._handle = C.llama_sampler_chain_init(params)
        for name, arguments in links:
            sampler = getattr(C, f"llama_sampler_init_{name}")(*arguments)
            C.llama_sampler_chain_add(self._handle, sampler)  # the chain owns it from here
        self._candidates = C.llama_token_data_array()

    def accept(self, tokens: Iterable[int]) -> None:
        """Show the samplers that look back what the text is made of."""
        for token in tokens:
            C.llama_sampler_accept(self._handle, token)

    def choose(self, candidates: NDArray[np.void]) -> int:
        """Draw one token from candidates (CANDIDATE records, which are overwritten)."""
        array = self._candidates
        array.data = ctypes.cast(candidates.ctypes.data, C.llama_token_data_p)
        array.size = len(candidates)
        array.selected = -1
        array.sorted = False
        C.llama_sampler_apply(self._handle, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise RuntimeError("llama.cpp's samplers chose no token")
        return int(array.data[array.selected].id)

    def close(self) -> None:
        """Free the samplers."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_sampler_free(handle)


CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""
