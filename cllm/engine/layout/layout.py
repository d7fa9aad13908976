"""How a context is computed: as configured, or by default where an option is open."""

from __future__ import annotations

from dataclasses import dataclass

from cllm.engine.config import EngineConfig
from cllm.engine.machine.processors import physical_cores

_UBATCH_SIZE = 512


@dataclass(frozen=True, slots=True)
class Layout:
    """Options that change speed and memory but not the results (EngineConfig)."""

    threads: int
    threads_batch: int
    kv_unified: bool
    flash_attn: str
    ubatch_size: int

    @classmethod
    def of(cls, config: EngineConfig) -> Layout:
        """The configuration's, with the defaults in place of None."""
        threads = config.threads or physical_cores()
        return cls(
            threads=threads,
            threads_batch=config.threads_batch or threads,
            kv_unified=bool(config.kv_unified),
            flash_attn=config.flash_attn,
            ubatch_size=config.ubatch_size or min(_UBATCH_SIZE, config.batch_size),
        )
