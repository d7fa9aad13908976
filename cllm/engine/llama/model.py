"""The weights of one GGUF file."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface

from cllm.engine.llama.backend import LoadError, init_backend, log_router, reason
from cllm.engine.llama.vocab import Vocab
from cllm.engine.machine.huge_pages import HugePages


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
        if raised is not None:
            if handle:
                C.llama_model_free(handle)
            raise raised
        if not handle:
            raise LoadError(reason(errors))
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

    def metadata(self, key: str) -> str | None:
        """A scalar of the GGUF's metadata as text; None if the file lacks it."""
        buffer = ctypes.create_string_buffer(256)
        count = C.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count >= 0 else None

    def close(self) -> None:
        """Free the weights and the vocabulary; every Context must be closed before."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_model_free(handle)
