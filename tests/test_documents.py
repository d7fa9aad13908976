"""What the documents say of the repository is there: files and commands that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.bench.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMED = re.compile(r"(?<![\w/.-])(?:cllm|scripts|tests|docs)/[\w./-]*\w")
LINKED = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [name for name in NAMED.findall(text) if not (ROOT / name).exists()]
    missing += [name for name in LINKED.findall(text) if not (document.parent / name).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_benchmarks_that_a_document_names_exist(document: Path) -> None:
    named = re.findall(r"scripts\.bench ([a-z][\w-]*)", document.read_text(encoding="utf-8"))
    assert set(named) <= set(COMMANDS)
