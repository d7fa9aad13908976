"""The engine's configuration: one slotted dataclass that checks itself."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from cllm.engine.overrides import KvOverride, LoraFile, TensorOverride

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

SPLIT_MODES = ("none", "layer", "row", "tensor")
"""How a model is divided between GPUs, in the order of llama.cpp's numbers."""

NUMA = ("off", "distribute", "isolate", "numactl")
"""How threads and memory are placed on NUMA nodes, in the order of ggml's numbers."""

ROPE_SCALINGS = ("none", "linear", "yarn")
"""How positions beyond the trained length are scaled, in the order of llama.cpp's numbers."""

_SWITCH = ("auto", "on", "off")


@dataclass(slots=True)
class EngineConfig:
    """How a model is loaded and shared between requests; raises ValueError with the remedy.

    parallel: sequences generated at once.
    keep_sequences: further sequences whose tokens stay in the cache while they rest, so that more
        conversations than `parallel` need no copy. None: as many as `parallel` in a unified cache
        of a model with attention only, without kv_cells and model_draft; else none.
    ctx_size: tokens per sequence, prompt and answer together. None: the length the model was
        trained for, limited by `memory_budget`, in steps of 256.
    memory_budget: bytes for the key/value cache of all sequences, used only when ctx_size is
        None. None: 2 GiB, or half of the memory now available if that is less.
    batch_size: maximum number of tokens per llama_decode.
    ubatch_size: tokens that llama.cpp evaluates together. None: 512, or batch_size if that is
        smaller.
    context_shift: a text that fills its context loses old tokens and goes on (shifting.py).
    reproducible: every request is; see SamplingParams. Needs an equal part of the cache for each.
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
    spec_synth_rates: for benchmarks, the probabilities with which the first n tokens of a draft are
        accepted, whatever the model would choose. (): it decides.
    slot_save_path: directory for the files of saved slots. None: slots cannot be saved.
    threads, threads_batch: for single tokens and for prompts. None: the physical cores that this
        process may use; threads_batch: as threads.
    n_gpu_layers: layers placed on a GPU; -1: all. None: all if llama.cpp was built for a GPU.
    split_mode, tensor_split, main_gpu: how several GPUs divide the model (one of SPLIT_MODES), in
        which proportions, and which one of them is used alone or for intermediate results.
    kv_offload: keep the key/value cache on the GPU.
    override_tensor: "PATTERN=BUFFER": the buffer type of weights by their names.
    cpu_moe, n_cpu_moe: keep the weights of the experts on the CPU, of all or of the first layers.
    flash_attn: "auto": where llama.cpp can, unless this CPU is faster without it.
    cache_type_k, cache_type_v: one of CACHE_TYPES.
    swa_full: keep all tokens of layers with sliding-window attention, so that any part of a slot
        can be reused, and not only the window, which takes less memory.
    rope_scaling: one of ROPE_SCALINGS; "auto": as the file says.
    rope_scale, rope_freq_scale: the factor by which the context is longer than trained, or 1
        divided by it. rope_freq_base: base frequency. None: as the file says.
    yarn_orig_ctx, yarn_ext_factor, yarn_attn_factor, yarn_beta_slow, yarn_beta_fast: parameters of
        "yarn"; None: as the file says, or llama.cpp's defaults.
    override_kv: "KEY=TYPE:VALUE": metadata in place of the file's.
    lora: files of LoRA adapters, "FILE" or "FILE:SCALE". lora_init_without_apply: their scales are
        0 until a request or Engine.adapters says otherwise.
    mlock, mmap: lock the weights into memory; map the file instead of reading it.
    direct_io: read the file past the system's cache, where that is possible; overrides mmap.
    numa: one of NUMA; applies to the whole process.
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
    keep_sequences: int | None = None
    ctx_size: int | None = None
    memory_budget: int | None = None
    context_shift: bool = False
    reproducible: bool = False
    batch_size: int = 2048
    ubatch_size: int | None = None
    max_itl_ms: int | None = None
    cache_ram: int | None = None
    cache_disk: str | None = None
    cache_disk_size: int | None = None
    draft_max: int = SPARE_ROWS
    model_draft: str | None = None
    spec_synth_rates: tuple[float, ...] = ()
    slot_save_path: str | None = None
    threads: int | None = None
    threads_batch: int | None = None
    n_gpu_layers: int | None = None
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    kv_offload: bool = True
    override_tensor: tuple[str, ...] = ()
    cpu_moe: bool = False
    n_cpu_moe: int = 0
    flash_attn: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    swa_full: bool = True
    rope_scaling: str = "auto"
    rope_scale: float | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None
    override_kv: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    lora_init_without_apply: bool = False
    mlock: bool = False
    mmap: bool = True
    direct_io: bool = False
    numa: str = "off"
    max_queue: int = 256
    extra_bufts: str = "auto"
    kv_unified: bool | None = None
    kv_cells: int | None = None
    pooling: str = "auto"
    tune: bool = False

    def __post_init__(self) -> None:
        self._check_range("parallel", self.parallel, 1, MAX_PARALLEL)
        self._check_range("keep_sequences", self.keep_sequences, 0, MAX_PARALLEL - self.parallel)
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
        self._check_range("n_cpu_moe", self.n_cpu_moe, 0, 1024)
        self._check_range("main_gpu", self.main_gpu, 0, None)
        self._check_range("yarn_orig_ctx", self.yarn_orig_ctx, 0, 2**31 - 1)
        self._check_range("max_queue", self.max_queue, 0, None)
        self._check_range("kv_cells", self.kv_cells, 2, 2**31 - 1)
        self._check_choice("flash_attn", self.flash_attn, _SWITCH)
        self._check_choice("extra_bufts", self.extra_bufts, _SWITCH)
        self._check_choice("cache_type_k", self.cache_type_k, CACHE_TYPES)
        self._check_choice("cache_type_v", self.cache_type_v, CACHE_TYPES)
        self._check_choice("split_mode", self.split_mode, SPLIT_MODES)
        self._check_choice("numa", self.numa, NUMA)
        self._check_choice("rope_scaling", self.rope_scaling, ("auto", *ROPE_SCALINGS))
        for name in ("rope_scale", "rope_freq_base", "rope_freq_scale"):
            self._check_number(name, getattr(self, name), above=True)
        for name in ("ext_factor", "attn_factor", "beta_slow", "beta_fast"):
            self._check_number(f"yarn_{name}", getattr(self, f"yarn_{name}"))
        for share in self.tensor_split:
            self._check_number("tensor_split", share)
        if self.tensor_split and not any(self.tensor_split):
            raise ValueError("tensor_split has no share above 0; give each GPU's share, as 3,1")
        self._check_synthetic_rates()
        if self.rope_scale is not None and self.rope_freq_scale is not None:
            raise ValueError("rope_scale and rope_freq_scale: give one of them")
        if self.direct_io and self.mlock:
            raise ValueError("direct_io=True excludes mlock=True; give one of them")
        self._check_each("override_kv", self.override_kv, KvOverride.parse)
        self._check_each("lora", self.lora, LoraFile.parse)
        self._check_each("override_tensor", self.override_tensor, TensorOverride.parse)
        for name, check in (
            ("slot_save_path", self._check_slot_save_path),
            ("cache_disk", self._check_cache_disk),
        ):
            path = getattr(self, name)
            if path is not None:
                try:
                    check(Path(path))
                except OSError as error:
                    raise ValueError(
                        f"{name}={path} cannot be used ({error.strerror}); name a directory of "
                        "this user"
                    ) from None
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
        if self.reproducible and self.kv_unified:
            raise ValueError(
                "reproducible needs an equal part of the cache for each sequence; leave out "
                "kv_unified"
            )
        if self.kv_cells is not None and not self.kv_unified:
            raise ValueError(
                f"kv_cells={self.kv_cells} needs a unified cache; set kv_unified, or use ctx_size"
            )

    @property
    def alterations(self) -> str:
        """The options by which the same tokens get other keys and values; "": none is set."""
        names = [f.name for f in fields(self) if f.name.startswith(("rope_", "yarn_"))]
        given = {name: getattr(self, name) for name in (*names, "override_kv")}
        plain = {f.name: f.default for f in fields(self)}
        return " ".join(f"{n}={value}" for n, value in given.items() if value != plain[n])

    @property
    def stretch(self) -> float:
        """The factor by which the context may be longer than the model was trained for."""
        scale = self.rope_scale or 1 / (self.rope_freq_scale or 1.0)
        return max(1.0, scale) if self.rope_scaling != "none" else 1.0

    @property
    def sequences(self) -> int:
        """Those that the cache holds: the ones that run, and the ones that rest."""
        return self.parallel + (self.keep_sequences or 0)

    def _check_synthetic_rates(self) -> None:
        rates = self.spec_synth_rates
        falling = all(b <= a for a, b in zip((1.0, *rates), rates, strict=False))
        if not falling or any(rate < 0 for rate in rates):
            raise ValueError(
                f"spec_synth_rates={rates}: give probabilities from 0 to 1, none of them higher "
                "than the one before it"
            )
        if len(rates) > self.draft_max:
            raise ValueError(
                f"spec_synth_rates has {len(rates)} values; give at most draft_max={self.draft_max}"
            )

    @staticmethod
    def _check_slot_save_path(path: Path) -> None:
        if not path.is_dir():
            raise ValueError(f"slot_save_path={path} is not a directory; create it first")

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
    def _check_number(name: str, value: float | None, *, above: bool = False) -> None:
        if value is not None and not (
            math.isfinite(value) and (value > 0 if above else value >= 0)
        ):
            bound = "above 0" if above else "of at least 0"
            raise ValueError(f"{name}={value} is out of range; give a number {bound}")

    @staticmethod
    def _check_each(name: str, given: tuple[str, ...], parse: Callable[[str], object]) -> None:
        for text in given:
            try:
                parse(text)
            except ValueError as error:
                raise ValueError(f"{name}={error}") from None

    @staticmethod
    def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not known; give one of {', '.join(choices)}")
