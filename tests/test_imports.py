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
    "page": {"cllm.http", "markdown_it", "pygments", "latex2mathml", "nh3"},
    "api": {"cllm.http", "cllm.engine", "cllm.version", "msgspec", "prometheus_client", "jinja2"},
}

# Sub-packages of the engine, and what each may import of the others. Base types are in the root.
ENGINE_PACKAGES: dict[str, set[str]] = {
    "machine": set(),
    "llama": {"machine"},
    "text": {"llama", "machine"},
    "constraints": {"llama", "machine"},
    "sampling": {"constraints", "llama"},
    "cache": {"llama", "machine", "sampling"},
    "speculation": {"cache", "llama"},
    "scheduling": {"cache", "constraints", "llama", "machine", "sampling", "speculation"},
    "layout": {"llama", "machine"},
    "embedding": {"layout", "llama", "scheduling", "text"},
    "loading": {"cache", "embedding", "layout", "llama", "machine", "speculation"},
}
# What may import the C interface; the preflight's child runs without the rest of the engine.
USES_LLAMA_CPP = {"cllm.engine.llama", "cllm.engine.machine.preflight_child"}

ROOM_FILES = [
    pytest.param(room, path, id=str(path.relative_to(PACKAGE)))
    for room in ALLOWED
    for path in sorted((PACKAGE / room).rglob("*.py"))
]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def module_of(path: Path, node: ast.ImportFrom) -> str:
    """The absolute name of what a module at `path` imports from."""
    package = path.relative_to(ROOT).parts[:-1]
    base = package[: len(package) - node.level + 1] if node.level else ()
    return ".".join([*base, *([node.module] if node.module else [])])


def imported(path: Path, source: str) -> Iterator[str]:
    """Absolute names of all that a module at `path` imports, at its top or anywhere inside."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = module_of(path, node)
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


def files_imported(path: Path, source: str) -> set[str]:
    """Modules of cllm that a file imports, also inside functions and for types only."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = module_of(path, node)
            inner = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else module for name in inner}
    return found & MODULES.keys()


def circle_in(arrows: dict[str, set[str]]) -> list[str]:
    """A path that returns to its start; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for inner in sorted(arrows.get(name, ())):
            if found := visit(inner, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := visit(name, []))), [])


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {name: files_imported(path, path.read_text("utf-8")) for name, path in MODULES.items()}
    assert circle_in(arrows) == []


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    source = """
if TYPE_CHECKING:
    from . import head
    from .sse import SseWriter
def f():
    from cllm.http.parser import RequestParser
"""
    found = files_imported(PACKAGE / "http" / "imaginary.py", source)
    assert found == {"cllm.http.head", "cllm.http.sse", "cllm.http.parser"}


def test_every_folder_of_the_engine_has_its_directions() -> None:
    folders = {path.parent.name for path in (PACKAGE / "engine").glob("*/*.py")}
    assert folders == set(ENGINE_PACKAGES)
    assert circle_in(ENGINE_PACKAGES) == []


@pytest.mark.parametrize("package", ENGINE_PACKAGES)
def test_a_sub_package_imports_only_what_it_may(package: str) -> None:
    inside = f"cllm.engine.{package}"
    may = {f"cllm.engine.{other}" for other in (package, *ENGINE_PACKAGES[package])}
    others = {f"cllm.engine.{other}" for other in ENGINE_PACKAGES}
    for name, path in MODULES.items():
        if within(name, {inside}):
            found = files_imported(path, path.read_text("utf-8"))
            assert [each for each in found if within(each, others) and not within(each, may)] == []


def test_llama_cpp_is_imported_in_its_package_only() -> None:
    users = [
        name
        for name, path in MODULES.items()
        if any(within(each, {"llama_cpp"}) for each in imported(path, path.read_text("utf-8")))
    ]
    assert users
    assert [name for name in users if not within(name, USES_LLAMA_CPP)] == []


def test_a_file_of_over_400_lines_says_why() -> None:
    folders = ("cllm", "scripts", "tests", "docs")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 300
    texts = {path: path.read_text(encoding="utf-8").splitlines() for path in paths}
    long = [path for path, lines in texts.items() if len(lines) > 400]
    assert [str(path) for path in long if "over 400 lines" not in texts[path][0]] == []
