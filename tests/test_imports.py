"""The import rule: each package imports only those below it, and works without the others."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cllm"

# What a package may import next to the standard library and itself.
ALLOWED = {
    "http": {"cllm.version"},
    "engine": {"llama_cpp", "numpy", "gguf", "llguidance", "cllm.models", "cllm.version"},
    "api": {"cllm.http", "cllm.engine", "cllm.version", "msgspec", "prometheus_client", "jinja2"},
}

ROOM_FILES = [
    pytest.param(room, path, id=str(path.relative_to(PACKAGE)))
    for room in ALLOWED
    for path in sorted((PACKAGE / room).rglob("*.py"))
]


def imported(path: Path, source: str) -> Iterator[str]:
    """Absolute names of all that a module at `path` imports, at its top or anywhere inside."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "cllm":  # `from cllm import http` imports cllm.http
                yield from (f"cllm.{alias.name}" for alias in node.names)
            else:
                yield module


def within(name: str, roots: set[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def test_every_room_has_files() -> None:
    for room in ALLOWED:
        assert len(list((PACKAGE / room).rglob("*.py"))) > 1


@pytest.mark.parametrize(("room", "path"), ROOM_FILES)
def test_a_room_imports_only_what_it_may(room: str, path: Path) -> None:
    allowed = ALLOWED[room] | {f"cllm.{room}"} | set(sys.stdlib_module_names)
    names = imported(path, path.read_text(encoding="utf-8"))
    assert [name for name in names if not within(name, allowed)] == []


def test_the_check_sees_every_form_of_import() -> None:
    source = """
import numpy.linalg
from .. import engine
from ..engine import x
from . import parser
from cllm import api
def f():
    import a
"""
    found = list(imported(PACKAGE / "http" / "imaginary.py", source))
    assert found == [
        "numpy.linalg", "cllm.engine", "cllm.engine", "cllm.http", "cllm.api", "a"
    ]  # fmt: skip


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after the statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,  # what it wrote says more than the exception would
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_the_server_alone_needs_no_model_library() -> None:
    modules = loaded_after("from cllm import HttpServer, HttpHandler, HttpRequest, HttpResponse")
    assert "cllm.http.server" in modules
    third_party = {"llama_cpp", "numpy", "gguf", "msgspec", "prometheus_client", "yaml"}
    assert not third_party & modules
    assert not [name for name in modules if name.startswith(("cllm.engine", "cllm.api"))]


def test_the_engine_alone_needs_no_server() -> None:
    modules = loaded_after("from cllm import Engine")
    assert "cllm.engine" in modules
    assert not [name for name in modules if name.startswith(("cllm.http", "cllm.api"))]


def test_importing_the_package_imports_no_room() -> None:
    modules = loaded_after("import cllm; cllm.__version__")
    assert not [name for name in modules if name.startswith(("cllm.http", "cllm.engine"))]
