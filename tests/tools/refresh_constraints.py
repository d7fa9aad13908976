"""Writes scripts/constraints.txt: the newest versions of all packages for every Python here.

    python -m tests.tools.refresh_constraints             with each Python that test.sh finds
    python -m tests.tools.refresh_constraints python3.13  with this one

Nothing is installed. Run scripts/test.sh afterwards and keep the file if everything passes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "scripts" / "constraints.txt"

# What pip installs besides to build cLLM and llama-cpp-python; pip itself is renewed if it is old.
BUILD = ("pip", "setuptools", "wheel", "scikit-build-core", "cmake", "ninja")

Python = tuple[int, int]
Versions = Mapping[str, str]

HEAD = """\
# The versions that the tests passed with, which run.sh and test.sh install.
# setup.cfg has the ranges. python -m tests.tools.refresh_constraints makes this file.
"""


def resolved(program: str) -> tuple[Python, dict[str, str]]:
    """The version of an interpreter, and that of each package that pip would install for it."""
    ask = "import sys; print(*sys.version_info[:2])"
    major, minor = map(int, output(program, "-c", ask).split())
    with tempfile.TemporaryDirectory(prefix="cllm-constraints-") as folder:
        output(program, "-m", "venv", folder)
        pip = (f"{folder}/bin/python", "-m", "pip")
        output(*pip, "install", "--quiet", "--upgrade", "pip")
        report = Path(folder, "report.json")
        output(
            *pip, "install", "--quiet", "--dry-run", "--ignore-installed",
            "--report", str(report), f"{ROOT}[check,test,compat,page]", *BUILD,
        )  # fmt: skip
        packages = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    found = {normalized(package["name"]): package["version"] for package in packages}
    del found["cllm"]
    return (major, minor), found


def merged(pythons: Mapping[Python, Versions]) -> list[str]:
    """The lines of the file. A package whose version depends on Python has one for each range."""
    lines = []
    for name in sorted({name for versions in pythons.values() for name in versions}):
        has = [
            (python, pythons[python][name]) for python in sorted(pythons) if name in pythons[python]
        ]
        groups = [list(group) for _, group in groupby(has, key=lambda each: each[1])]
        starts = [spelled(group[0][0]) for group in groups]
        for index, group in enumerate(groups):
            bounds = []
            if index > 0:
                bounds.append(f'python_version >= "{starts[index]}"')
            if index + 1 < len(groups):
                bounds.append(f'python_version < "{starts[index + 1]}"')
            marker = f" ; {' and '.join(bounds)}" if bounds else ""
            lines.append(f"{name}=={group[0][1]}{marker}")
    return lines


def spelled(python: Python) -> str:
    """(3, 12) -> 3.12"""
    return f"{python[0]}.{python[1]}"


def normalized(name: str) -> str:
    """A package's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def output(*command: str) -> str:
    """What a command prints; its errors go to the terminal, and a failure ends the program."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed with exit status {done.returncode}: {' '.join(command)}")
    return done.stdout


def pythons_here() -> list[str]:
    """The interpreters with which scripts/test.sh runs."""
    code = (
        'source scripts/_env.sh; default=$(find_python); echo "$default"; other_pythons "$default"'
    )
    lines = output("bash", "-c", f"cd '{ROOT}'; {code}").splitlines()
    return [line.split(" ", 1)[-1] for line in lines]


def main() -> None:
    """Resolve for each interpreter and write the file."""
    parser = argparse.ArgumentParser(description="Write scripts/constraints.txt anew.")
    parser.add_argument("python", nargs="*", help="interpreters; default: all that are found")
    pythons: dict[Python, dict[str, str]] = {}
    for program in parser.parse_args().python or pythons_here():
        print(f"resolving for {program}", file=sys.stderr)
        python, versions = resolved(program)
        pythons[python] = versions
    FILE.write_text(HEAD + "".join(f"{line}\n" for line in merged(pythons)), encoding="utf-8")
    print(f"{FILE}: {', '.join(map(spelled, sorted(pythons)))}", file=sys.stderr)


if __name__ == "__main__":
    main()
