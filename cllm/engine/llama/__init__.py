"""llama.cpp's C interface as small objects that own its handles.

Every owner has close(), which may be called twice. Nothing here decides anything. Only this
package and the preflight's child process import llama_cpp.
"""

from cllm.engine.llama.context import (
    CANDIDATE,
    DONE,
    INTERRUPTED,
    NO_ROOM,
    Batch,
    Bytes,
    Context,
    FloatArray,
    IntArray,
    Link,
    LoadError,
    Model,
    SamplerChain,
    Vocab,
    dry_link,
    init_backend,
    system_info,
    uses_openmp,
    version,
)

__all__ = [
    "CANDIDATE",
    "DONE",
    "INTERRUPTED",
    "NO_ROOM",
    "Batch",
    "Bytes",
    "Context",
    "FloatArray",
    "IntArray",
    "Link",
    "LoadError",
    "Model",
    "SamplerChain",
    "Vocab",
    "dry_link",
    "init_backend",
    "system_info",
    "uses_openmp",
    "version",
]
