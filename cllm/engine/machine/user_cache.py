"""The folder of this user's derived files, and atomic writes to it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def user_cache() -> Path:
    """The directory for files that can be regenerated; created, and checked to be writable.

    $XDG_CACHE_HOME/cllm, or ~/.cache/cllm (XDG Base Directory Specification); if neither is
    writable (a read-only home, a container without one), this user's directory under the system's
    temporary directory.
    """
    wanted = _wanted()
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        if os.access(wanted, os.W_OK | os.X_OK):
            return wanted
    except OSError:
        pass
    return _private_temporary()


def _wanted() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative value is invalid and must be ignored.
    root = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache"
    return root / "cllm"


def _private_temporary() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    shared = Path(tempfile.gettempdir()) / f"cllm-{user}"
    with contextlib.suppress(OSError):
        shared.mkdir(mode=0o700, exist_ok=True)
        status = shared.lstat()
        # Any user may have created that name in /tmp: only our own private directory is trusted.
        ours = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        if ours and not shared.is_symlink() and not status.st_mode & 0o022:
            return shared
    return Path(tempfile.mkdtemp(prefix="cllm-"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to `path` to write to; rename it to `path` without an error.

    Other processes see the old file or the new one, never a part; of concurrent writers the last
    one wins.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
