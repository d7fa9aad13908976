"""Files, sections and commands that the documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.bench.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMED = re.compile(r"(?<![\w/.-])(?:cllm|scripts|tests|docs)/[\w./-]*\w")
LINKED = re.compile(r"\]\((?!https?:)([^)#]+)")
SECTION = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [name for name in NAMED.findall(text) if not (ROOT / name).exists()]
    missing += [name for name in LINKED.findall(text) if not (document.parent / name).exists()]
    assert missing == []


def anchors(document: Path) -> set[str]:
    """The names by which GitHub links to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_sections_that_a_document_links_to_exist(document: Path) -> None:
    links = SECTION.findall(document.read_text(encoding="utf-8"))
    targets = [(document.parent / name if name else document, anchor) for name, anchor in links]
    assert [link for link in targets if link[1] not in anchors(link[0])] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_benchmarks_that_a_document_names_exist(document: Path) -> None:
    named = re.findall(r"scripts\.bench ([a-z][\w-]*)", document.read_text(encoding="utf-8"))
    assert set(named) <= set(COMMANDS)
