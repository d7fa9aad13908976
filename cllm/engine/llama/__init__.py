"""llama.cpp's C interface as small objects that own its handles.

Every owner has close(), which may be called twice. Nothing here decides anything. Only this
package and the preflight's child process import llama_cpp.
"""

from cllm.engine.llama.arrays import Bytes, FloatArray, IntArray
from cllm.engine.llama.attention import AttentionTimes, attention_times
from cllm.engine.llama.backend import (
    LoadError,
    init_backend,
    library,
    system_info,
    uses_openmp,
    version,
)
from cllm.engine.llama.context import DONE, INTERRUPTED, NO_ROOM, Batch, Context, Rope
from cllm.engine.llama.devices import (
    buffer_types,
    most_devices,
    numa_nodes,
    offloads,
    place_on_nodes,
)
from cllm.engine.llama.model import Model, Placement
from cllm.engine.llama.samplers import CANDIDATE, Link, SamplerChain, dry_link
from cllm.engine.llama.vocab import Vocab

__all__ = [
    "CANDIDATE",
    "DONE",
    "INTERRUPTED",
    "NO_ROOM",
    "AttentionTimes",
    "Batch",
    "Bytes",
    "Context",
    "FloatArray",
    "IntArray",
    "Link",
    "LoadError",
    "Model",
    "Placement",
    "Rope",
    "SamplerChain",
    "Vocab",
    "attention_times",
    "buffer_types",
    "dry_link",
    "init_backend",
    "library",
    "most_devices",
    "numa_nodes",
    "offloads",
    "place_on_nodes",
    "system_info",
    "uses_openmp",
    "version",
]
