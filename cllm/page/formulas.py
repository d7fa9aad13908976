"""Formulas in Markdown: $…$ and \\(…\\) within a line, $$…$$ and \\[…\\] also over lines."""

from __future__ import annotations

from markdown_it import MarkdownIt
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

_INLINE = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))
_BLOCK = (("$$", "$$"), ("\\[", "\\]"))
_FAR = 2100  # characters to the end of a formula


def add_formulas(parser: MarkdownIt) -> None:
    """Make tokens `formula` and `formula_block` of them."""
    parser.inline.ruler.before("escape", "formula", _inline)
    interrupts: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.before("fence", "formula_block", _block, interrupts)


def _inline(state: StateInline, silent: bool) -> bool:
    source, start = state.src, state.pos
    for opening, closing in _INLINE:
        if not source.startswith(opening, start):
            continue
        inner = start + len(opening)
        end = source.find(closing, inner, inner + _FAR)
        if end <= inner or (opening == "$" and not _is_formula(source, inner, end)):
            continue
        if not silent:
            token = state.push("formula_block" if closing in ("$$", "\\]") else "formula", "", 0)
            token.content = source[inner:end].strip()
        state.pos = end + len(closing)
        return True
    return False


def _is_formula(source: str, inner: int, end: int) -> bool:
    """Whether $…$ is one rather than two prices: no space inside, no digit after, no new line."""
    content = source[inner:end]
    if content[0].isspace() or content[-1].isspace() or "\n" in content or content[-1] == "\\":
        return False
    return not source[end + 1 : end + 2].isdigit()


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].rstrip()
    pair = next((pair for pair in _BLOCK if first.startswith(pair[0])), None)
    if pair is None:
        return False
    opening, closing = pair
    lines, size = [first[len(opening) :]], 0
    line = start
    while not lines[-1].rstrip().endswith(closing):
        line += 1
        size += len(lines[-1])
        if (
            opening in lines[-1]
            or line >= end
            or size > _FAR
            or state.sCount[line] < state.blkIndent
        ):
            return False
        lines.append(state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]])
    lines[-1] = lines[-1].rstrip()[: -len(closing)]
    content = "\n".join(lines).strip()
    if not content or opening in content:
        return False
    if silent:
        return True
    state.line = line + 1
    token = state.push("formula_block", "", 0)
    token.content = content
    token.map = [start, state.line]
    return True
