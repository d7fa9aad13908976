"""One sequence decoded by llama.cpp's C interface alone, as its simplest example does it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import numpy as np
import numpy.typing as npt

from cllm.engine.llama import Batch, init_backend

Logits = npt.NDArray[np.float32]


class Reference:
    """A model and a context for one sequence."""

    def __init__(
        self,
        path: Path,
        *,
        ctx_size: int,
        threads: int,
        extra_bufts: bool,
        f32_cache: bool = False,
    ) -> None:
        init_backend()
        of_model = C.llama_model_default_params()
        of_model.use_extra_bufts = extra_bufts
        self._model = C.llama_model_load_from_file(str(path).encode(), of_model)
        assert self._model
        self._vocab = C.llama_model_get_vocab(self._model)
        self._n_vocab = C.llama_vocab_n_tokens(self._vocab)
        of_context = C.llama_context_default_params()
        of_context.n_ctx = of_context.n_batch = of_context.n_ubatch = ctx_size
        of_context.n_threads = of_context.n_threads_batch = threads
        of_context.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if f32_cache:
            of_context.type_k = of_context.type_v = 0  # GGML_TYPE_F32
        self._context = C.llama_init_from_model(self._model, of_context)
        assert self._context

    def close(self) -> None:
        """Free the context and the model."""
        C.llama_free(self._context)
        C.llama_model_free(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Text with spelled control tokens -> tokens."""
        data = text.encode()
        tokens = (C.llama_token * (len(data) + 8))()
        count = C.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), True, True)
        return list(tokens[:count])

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, control tokens left out."""
        data = b""
        for token in tokens:
            buffer = ctypes.create_string_buffer(64)
            count = C.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            data += buffer.raw[:count]
        return data.decode("utf-8", "replace")

    def greedy(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """The tokens that follow, each the most probable, up to one that ends the text."""
        C.llama_memory_clear(C.llama_get_memory(self._context), True)
        self._decode(prompt)
        chosen: list[int] = []
        while len(chosen) < max_tokens:
            token = int(np.argmax(self._row(-1)))
            if C.llama_vocab_is_eog(self._vocab, token):
                break
            chosen.append(token)
            self._decode([token])
        return chosen

    def shortfalls(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """By how much the logit of each token of an answer is below the greatest of its place."""
        tokens, first = [*prompt, *answer], len(prompt) - 1
        batch = Batch(len(tokens))
        batch.token[:], batch.pos[:], batch.output[first:] = tokens, range(len(tokens)), 1
        C.llama_memory_clear(C.llama_get_memory(self._context), True)
        assert C.llama_decode(self._context, batch.as_struct(len(tokens))) == 0
        rows = (self._row(first + index) for index in range(len(answer)))
        return [
            float(row[np.argmax(row)] - row[token]) for row, token in zip(rows, answer, strict=True)
        ]

    def logprobs(self, tokens: Sequence[int]) -> Logits:
        """The log softmax of the logits of all tokens but the last, [tokens - 1, n_vocab]."""
        batch = Batch(len(tokens))
        batch.token[:], batch.pos[:], batch.output[:] = tokens, range(len(tokens)), 1
        C.llama_memory_clear(C.llama_get_memory(self._context), True)
        assert C.llama_decode(self._context, batch.as_struct(len(tokens))) == 0
        rows = np.array([self._row(at) for at in range(len(tokens) - 1)], dtype=np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return np.asarray(rows, dtype=np.float32)

    def _decode(self, tokens: Sequence[int]) -> None:
        held = (C.llama_token * len(tokens))(*tokens)
        assert C.llama_decode(self._context, C.llama_batch_get_one(held, len(tokens))) == 0

    def _row(self, index: int) -> Logits:
        pointer = C.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (self._n_vocab,))
