"""Loads LoRA adapters, or says in one line why one cannot be used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cllm.engine import llama
from cllm.engine.adapters import Adapter, Adapters
from cllm.engine.config import EngineConfig
from cllm.engine.errors import ModelLoadError
from cllm.engine.loading.gguf_header import GgufHeader
from cllm.engine.loading.opening import readable_header
from cllm.engine.machine.fingerprint import fingerprint
from cllm.engine.overrides import LoraFile

_INVOCATION = "adapter.alora.invocation_tokens"


@dataclass(frozen=True, slots=True)
class LoraFiles:
    """The files of adapters, checked before the model is loaded."""

    files: Sequence[LoraFile]
    headers: Sequence[GgufHeader]
    apply: bool  # at the start

    @classmethod
    def of(cls, config: EngineConfig, model: str, header: GgufHeader) -> LoraFiles:
        """Those of the configuration, for a model file. Raises ModelLoadError."""
        files = [LoraFile.parse(text) for text in config.lora]
        headers = [_checked(file.path, model, header) for file in files]
        return cls(files, headers, not config.lora_init_without_apply)

    def load(self, model: llama.Model) -> Adapters:
        """Load them for the model, before it gets a context. Raises ModelLoadError."""
        for file in self.files:
            try:
                model.add_adapter(str(file.path))
            except llama.LoadError as error:
                raise ModelLoadError(
                    f"--lora: {file.path.name} does not fit the model ({error}); give an adapter "
                    "that was made for this model"
                ) from None
        loaded = [
            Adapter(file.path, fingerprint(file.path), _texts(header.metadata))
            for file, header in zip(self.files, self.headers, strict=True)
        ]
        return Adapters(loaded, [file.scale if self.apply else 0.0 for file in self.files])


def _checked(path: Path, model: str, of_model: GgufHeader) -> GgufHeader:
    try:
        header = readable_header(path)
    except ModelLoadError as error:
        raise ModelLoadError(f"--lora: {error}") from None
    found = header.metadata
    kind = found.get("general.type")
    if kind != "adapter" or found.get("adapter.type") != "lora":
        raise ModelLoadError(
            f"--lora: {path.name} is not a LoRA adapter (its type is "
            f"{found.get('adapter.type', kind)}); give one in GGUF format"
        )
    arch, own = found.get("general.architecture"), of_model.metadata.get("general.architecture")
    if arch != own:
        raise ModelLoadError(
            f"--lora: {path.name} is for models of architecture {arch}, and {model} has {own}; "
            "give an adapter that was made for this model"
        )
    if _INVOCATION in found:
        raise ModelLoadError(
            f"--lora: {path.name} is an activated LoRA (aLoRA), which is not supported; give a "
            "plain one"
        )
    if header.n_tensors == 0:
        raise ModelLoadError(f"--lora: {path.name} has no weights; give a complete adapter")
    alpha = found.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise ModelLoadError(f"--lora: {path.name} has no valid alpha; convert it anew")
    return header


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if isinstance(value, str)}
