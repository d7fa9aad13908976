"""Loads a draft model, or says in one line why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cllm.engine import llama
from cllm.engine.cache.prefix_cache import WORTH, copy_gain
from cllm.engine.config import EngineConfig
from cllm.engine.embedding.pooling import pooling_of
from cllm.engine.errors import ModelLoadError
from cllm.engine.layout.layout import Layout
from cllm.engine.layout.sizing import kv_bytes_per_token
from cllm.engine.loading.gguf_header import GgufHeader
from cllm.engine.loading.opening import (
    checked_header,
    open_context,
    open_model,
    wants_extra_bufts,
    warm_up,
)
from cllm.engine.speculation.draft_model import DraftModel, difference


@dataclass(frozen=True, slots=True)
class DraftFile:
    """A draft model's file, checked before the main model is loaded."""

    path: Path
    header: GgufHeader

    @classmethod
    def of(cls, config: EngineConfig) -> DraftFile | None:
        """The one that is configured; None where nothing is drafted. Raises ModelLoadError."""
        if config.model_draft is None or not config.draft_max:
            return None
        path = Path(config.model_draft)
        with _naming_option():
            header = checked_header(path, config)
            if pooling_of(header.metadata, replace(config, pooling="auto")) is not None:
                raise ModelLoadError(f"{path.name} does not generate text; give a generative model")
        return cls(path, header)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.header.size_bytes

    def kv_bytes_per_token(self, config: EngineConfig) -> int:
        """Bytes per token in its cache."""
        return kv_bytes_per_token(self.header.metadata, config)

    def load(
        self,
        name: str,
        main: llama.Vocab,
        cells: int,
        config: EngineConfig,
        layout: Layout,
        progress: Callable[[float], None] | None,
    ) -> DraftModel:
        """Load it next to the main model. Raises ModelLoadError.

        name, main: the main model's file and vocabulary. cells: tokens that each cache holds.
        """
        with _naming_option():
            extra = wants_extra_bufts(config, self.header)
            model = open_model(self.path, config, extra, progress)
            with ExitStack() as undo:
                undo.callback(model.close)
                self._check(model, main, name)
                context = self._make_context(model, cells, config, layout)
                undo.callback(context.close)
                batch = llama.Batch(min(config.batch_size, context.n_batch))
                warm_up(self.path.name, model, context, batch)
                undo.pop_all()
        gain = max(WORTH, copy_gain(not layout.kv_unified, context.n_ctx_seq))
        return DraftModel(model, context, batch, main, gain)

    def _check(self, model: llama.Model, main: llama.Vocab, name: str) -> None:
        if not model.supports_rollback or model.has_encoder or model.diffuses:
            raise ModelLoadError(
                f"{self.path.name} cannot roll back a draft; give a decoder whose layers all have "
                "attention"
            )
        how = difference(main, model.vocab)
        if how is not None:
            raise ModelLoadError(
                f"{self.path.name} and {name} have different vocabularies ({how}); "
                "give a draft model of the same family, or omit it"
            )

    def _make_context(
        self, model: llama.Model, cells: int, config: EngineConfig, layout: Layout
    ) -> llama.Context:
        try:
            return open_context(model, cells, config, layout, config.parallel)
        except OSError as error:
            raise ModelLoadError(
                f"llama.cpp cannot make a context of {cells} tokens for {self.path.name} "
                f"({error}); lower ctx_size or parallel"
            ) from None


@contextmanager
def _naming_option() -> Iterator[None]:
    try:
        yield
    except ModelLoadError as error:
        raise ModelLoadError(f"--model-draft: {error}") from None
