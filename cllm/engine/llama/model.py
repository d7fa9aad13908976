"""The weights of one GGUF file."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface

from cllm.engine.llama.backend import LoadError, init_backend, log_router, reason
from cllm.engine.llama.devices import buffer_types, most_devices
from cllm.engine.llama.vocab import Vocab
from cllm.engine.machine.huge_pages import HugePages
from cllm.engine.overrides import KvOverride, TensorOverride


@dataclass(frozen=True, slots=True)
class Placement:
    """On which devices the weights lie. split_mode: enum llama_split_mode.

    tensors: the first whose pattern matches a weight's name says where it lies.
    """

    split_mode: int = C.LLAMA_SPLIT_MODE_LAYER
    main_gpu: int = 0
    tensor_split: tuple[float, ...] = ()
    tensors: tuple[TensorOverride, ...] = ()


class Model:
    """Weights and vocabulary of one GGUF file; raises LoadError with llama.cpp's reason.

    An exception from `progress` ends the load and is raised unchanged.
    """

    def __init__(
        self,
        path: str,
        *,
        n_gpu_layers: int = 0,
        mmap: bool = True,
        mlock: bool = False,
        direct_io: bool = False,
        use_extra_bufts: bool = True,
        placement: Placement | None = None,
        overrides: Sequence[KvOverride] = (),
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
        if direct_io:
            params.load_mode = C.LLAMA_LOAD_MODE_DIRECT_IO
        params.use_extra_bufts = use_extra_bufts
        kept = (_place(params, placement), _override(params, overrides))  # until it has loaded

        begun, pages = False, HugePages()
        raised: BaseException | None = None

        def report(fraction: float, _user_data: object) -> bool:
            nonlocal begun, raised
            if not begun:  # all memory is allocated, and nothing read yet
                begun = True
                pages.advise()
            try:
                if progress is not None:
                    progress(fraction)
            except BaseException as error:  # ctypes would print it and drop it
                raised = error
            return raised is None

        callback = C.llama_progress_callback(report)  # referenced until the load has returned
        params.progress_callback = callback
        with log_router.capture() as errors:
            handle = C.llama_model_load_from_file(path.encode(), params)
        del kept
        if raised is not None:
            if handle:
                C.llama_model_free(handle)
            raise raised
        if not handle:
            raise LoadError(reason(errors))
        self._handle = handle
        self.adapters: list[int] = []  # handles of LoRA adapters, which belong to the model
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
        self.recurrent = bool(C.llama_model_is_recurrent(handle))  # without attention
        self.supports_rollback = not (self.recurrent or C.llama_model_is_hybrid(handle))
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

    def add_adapter(self, path: str) -> None:
        """Load a LoRA adapter, before the model gets a context. Raises LoadError."""
        with log_router.capture() as errors:
            handle = C.llama_adapter_lora_init(self.handle, path.encode())
        if not handle:
            raise LoadError(reason(errors))
        self.adapters.append(handle)

    def metadata(self, key: str) -> str | None:
        """A scalar of the GGUF's metadata as text; None if the file lacks it."""
        buffer = ctypes.create_string_buffer(256)
        count = C.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count >= 0 else None

    def close(self) -> None:
        """Free weights, vocabulary and adapters; every Context must be closed before."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_model_free(handle)


class _TensorBuffer(ctypes.Structure):
    """struct llama_model_tensor_buft_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


_KV_TAGS = {
    int: C.LLAMA_KV_OVERRIDE_TYPE_INT,
    float: C.LLAMA_KV_OVERRIDE_TYPE_FLOAT,
    bool: C.LLAMA_KV_OVERRIDE_TYPE_BOOL,
    str: C.LLAMA_KV_OVERRIDE_TYPE_STR,
}


def _place(params: Any, placement: Placement | None) -> Any:
    """Set the devices; the result must be kept while the model is loaded."""
    if placement is None:
        return None
    params.split_mode, params.main_gpu = placement.split_mode, placement.main_gpu
    split = None
    if placement.tensor_split:
        split = (ctypes.c_float * most_devices())(*placement.tensor_split)
        params.tensor_split = split
    if not placement.tensors:
        return split
    buffers, count = buffer_types(), len(placement.tensors)
    tensors = (_TensorBuffer * (count + 1))()  # the last one, empty, is the end
    for at, each in enumerate(placement.tensors):
        tensors[at] = _TensorBuffer(each.pattern.encode(), buffers[each.buffer])
    params.tensor_buft_overrides = ctypes.cast(tensors, ctypes.c_void_p)
    return split, tensors


def _override(params: Any, overrides: Sequence[KvOverride]) -> Any:
    """Set metadata in place of the file's; the result must be kept while the model is loaded."""
    if not overrides:
        return None
    found = (C.llama_model_kv_override * (len(overrides) + 1))()
    for entry, each in zip(found, overrides, strict=False):
        entry.key, entry.tag = each.key.encode(), _KV_TAGS[type(each.value)]
        match each.value:
            case bool():
                entry.value.val_bool = each.value
            case int():
                entry.value.val_i64 = each.value
            case float():
                entry.value.val_f64 = each.value
            case str():
                entry.value.val_str = each.value.encode()
    params.kv_overrides = found
    return found
