"""Continuous-batching inference on llama.cpp: knows tokens and sequences, and nothing of HTTP.

Names are resolved on first use, so that reading an error or a configuration does not load
llama.cpp's library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cllm.engine.machine.openmp import bound_spinning

if TYPE_CHECKING:
    from cllm.engine.config import EngineConfig
    from cllm.engine.constraints.constraint import Constraint
    from cllm.engine.embedding.handle import Embedding
    from cllm.engine.engine import Engine
    from cllm.engine.errors import (
        CompilerUnavailable,
        ConstraintPending,
        DeadlineExceeded,
        EngineClosed,
        EngineError,
        InputTooLong,
        InvalidRequest,
        ModelLoadError,
        NotEnabled,
        PromptTooLong,
        QueueFull,
        TooIntricate,
        Unsupported,
    )
    from cllm.engine.generation import Completion, Generation, TokenRecord
    from cllm.engine.info import ModelInfo
    from cllm.engine.request import Request, Timings, Usage
    from cllm.engine.sampling.params import SamplingParams
    from cllm.engine.stats import EngineStats

bound_spinning()  # an OpenMP runtime reads it when llama.cpp's library is loaded

__all__ = [
    "CompilerUnavailable",
    "Completion",
    "Constraint",
    "ConstraintPending",
    "DeadlineExceeded",
    "Embedding",
    "Engine",
    "EngineClosed",
    "EngineConfig",
    "EngineError",
    "EngineStats",
    "Generation",
    "InputTooLong",
    "InvalidRequest",
    "ModelInfo",
    "ModelLoadError",
    "NotEnabled",
    "PromptTooLong",
    "QueueFull",
    "Request",
    "SamplingParams",
    "Timings",
    "TokenRecord",
    "TooIntricate",
    "Unsupported",
    "Usage",
]

_MODULE = {
    "Completion": "generation",
    "Constraint": "constraints.constraint",
    "Embedding": "embedding.handle",
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineStats": "stats",
    "Generation": "generation",
    "ModelInfo": "info",
    "Request": "request",
    "SamplingParams": "sampling.params",
    "Timings": "request",
    "TokenRecord": "generation",
    "Usage": "request",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cllm.engine' has no attribute {name!r}")
    return getattr(import_module(f"cllm.engine.{_MODULE.get(name, 'errors')}"), name)
