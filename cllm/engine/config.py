"""The engine's configuration: one slotted dataclass that checks itself."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""What the key/value cache can be stored as (llama.cpp's names)."""

POOLINGS = ("none", "mean", "cls", "last", "rank")
"""In the order of llama.cpp's numbers, which GGUF files hold (enum llama_pooling_type)."""

MAX_PARALLEL = 256
"""llama.cpp's LLAMA_MAX_SEQ."""

SPARE_ROWS = 32
"""Rows of logits for drafted tokens, of all sequences together."""

SCORED_ROWS = 64
"""Rows of logits for scored tokens of prompts, of all sequences together. No step has both."""

_SWITCH = ("auto", "on", "off")


@dataclass(slots=True)
class EngineConfig:
    """How a model is loaded and shared between requests; raises ValueError with the remedy.

    parallel: sequences generated at once.
    ctx_size: tokens per sequence, prompt and answer together. None: the length the model was
        trained for, limited by `memory_budget`, in steps of 256.
    memory_budget: bytes for the key/value cache of all sequences, used only when ctx_size is
        None. None: 2 GiB, or half of the memory now available if that is less.
    batch_size: maximum number of tokens per llama_decode.
    ubatch_size: tokens that llama.cpp evaluates together. None: 512, or batch_size if that is
        smaller.
    max_itl_ms: upper bound in ms on the gap between two tokens of a stream while prompts are read.
        None: five times a step without prompts, at least 100, and a second if more prompts wait
        than streams run. A step reads at least 64 tokens of a long prompt, even if slower.
    cache_ram: bytes of host memory for prefixes of evicted slots; 0: none.
        None: 1 GiB, or a quarter of the memory now available if that is less.
    cache_disk: directory for prefixes that outlive the process; made if only itself is missing.
        Needs cache_ram. None: none are written.
    cache_disk_size: bytes of its files. None: 8 GiB, or a quarter of the free space if that is
        less.
    draft_max: tokens that a sequence may draft, at most as many as there are rows for;
        0: none.
    model_draft: GGUF file of a smaller model with the same vocabulary, for drafts that go beyond
        those from the sequence's own text. None: drafts come from the text alone.
    slot_save_path: directory for the files of saved slots. None: slots cannot be saved.
    threads, threads_batch: for single tokens and for prompts. None: the physical cores that this
        process may use; threads_batch: as threads.
    n_gpu_layers: layers placed on a GPU; -1: all.
    flash_attn: "auto" lets llama.cpp decide.
    cache_type_k, cache_type_v: one of CACHE_TYPES.
    mlock, mmap: lock the weights into memory; map the file instead of reading it.
    max_queue: requests that may wait while `parallel` others run.
    extra_bufts: llama.cpp's repacked/AMX kernels. "auto": on unless a test in a child process
        crashes with them (preflight.py).
    kv_unified: one cache for all sequences, or an equal part for each (decodes faster). A
        unified cache stores shared prefixes once. None: an equal part for each.
    pooling: how a model that embeds makes one vector, or score, of an input's tokens: one of
        POOLINGS; "auto": as the file says. If it says nothing, the model generates.
    kv_cells: total tokens of a unified cache; fewer than parallel * ctx_size overcommits: if too
        many sequences grow long at once, some are computed again.
    tune: measure, once per model and machine, which threads, threads_batch, kv_unified,
        flash_attn and ubatch_size are fastest, of those that are None or "auto" (tuning.py).
    """

    parallel: int = 8
    ctx_size: int | None = None
    memory_budget: int | None = None
    batch_size: int = 2048
    ubatch_size: int | None = None
    max_itl_ms: int | None = None
    cache_ram: int | None = None
    cache_disk: str | None = None
    cache_disk_size: int | None = None
    draft_max: int = SPARE_ROWS
    model_draft: str | None = None
    slot_save_path: str | None = None
    threads: int | None = None
    threads_batch: int | None = None
    n_gpu_layers: int = 0
    flash_attn: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    mlock: bool = False
    mmap: bool = True
    max_queue: int = 256
    extra_bufts: str = "auto"
    kv_unified: bool | None = None
    kv_cells: int | None = None
    pooling: str = "auto"
    tune: bool = False

    def __post_init__(self) -> None:
        self._check_range("parallel", self.parallel, 1, MAX_PARALLEL)
        self._check_range("ctx_size", self.ctx_size, 2, 2**31 // MAX_PARALLEL)
        self._check_range("memory_budget", self.memory_budget, 1, None)
        self._check_range("batch_size", self.batch_size, 1, 2**20)
        self._check_range("ubatch_size", self.ubatch_size, 1, 2**20)
        self._check_range("max_itl_ms", self.max_itl_ms, 1, 60_000)
        self._check_range("cache_ram", self.cache_ram, 0, None)
        self._check_range("cache_disk_size", self.cache_disk_size, 1 << 20, None)
        self._check_range("draft_max", self.draft_max, 0, SPARE_ROWS)
        self._check_range("threads", self.threads, 1, 512)
        self._check_range("threads_batch", self.threads_batch, 1, 512)
        self._check_range("n_gpu_layers", self.n_gpu_layers, -1, None)
        self._check_range("max_queue", self.max_queue, 0, None)
        self._check_range("kv_cells", self.kv_cells, 2, 2**31 - 1)
        self._check_choice("flash_attn", self.flash_attn, _SWITCH)
        self._check_choice("extra_bufts", self.extra_bufts, _SWITCH)
        self._check_choice("cache_type_k", self.cache_type_k, CACHE_TYPES)
        self._check_choice("cache_type_v", self.cache_type_v, CACHE_TYPES)
        if self.slot_save_path is not None and not Path(self.slot_save_path).is_dir():
            raise ValueError(
                f"slot_save_path={self.slot_save_path} is not a directory; create it first"
            )
        if self.cache_disk is not None:
            self._check_cache_disk(Path(self.cache_disk))
        self._check_choice("pooling", self.pooling, ("auto", *POOLINGS))
        if self.batch_size < self.parallel:
            raise ValueError(
                f"batch_size={self.batch_size} cannot hold one token of each of "
                f"{self.parallel} sequences; raise batch_size or lower parallel"
            )
        if self.ubatch_size is not None and self.ubatch_size > self.batch_size:
            raise ValueError(
                f"ubatch_size={self.ubatch_size} is more than batch_size={self.batch_size}; "
                "lower ubatch_size or raise batch_size"
            )
        if self.flash_attn == "off" and self.cache_type_v not in ("f32", "f16", "bf16"):
            raise ValueError(
                f"cache_type_v={self.cache_type_v} needs flash attention; "
                "set flash_attn to auto or on, or cache_type_v to f16"
            )
        if self.kv_cells is not None and not self.kv_unified:
            raise ValueError(
                f"kv_cells={self.kv_cells} needs a unified cache; set kv_unified, or use ctx_size"
            )

    def _check_cache_disk(self, path: Path) -> None:
        if self.cache_ram == 0:
            raise ValueError("cache_disk needs host memory; set cache_ram above 0, or to auto")
        if not path.exists():
            if not path.parent.is_dir():
                raise ValueError(f"cache_disk={path} is in no directory; create {path.parent}")
            return
        if not path.is_dir():
            raise ValueError(f"cache_disk={path} is not a directory; name a directory")
        status = path.stat()
        # Its files are restored into llama.cpp's memory.
        if hasattr(os, "geteuid") and (
            status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            raise ValueError(
                f"cache_disk={path} can be written by other users; name a directory of this user "
                "with mode 700, or a new one in it"
            )

    @staticmethod
    def _check_range(name: str, value: object, least: int, greatest: int | None) -> None:
        if value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r} is not an integer")
        if value < least or (greatest is not None and value > greatest):
            bound = f"at least {least}" if greatest is None else f"from {least} to {greatest}"
            raise ValueError(f"{name}={value} is out of range; give {bound}")

    @staticmethod
    def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not known; give one of {', '.join(choices)}")
