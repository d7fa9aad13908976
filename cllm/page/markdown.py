"""Markdown to sanitized HTML: CommonMark with tables, highlighted code and formulas."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from html import escape
from typing import Any

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline, image, link
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from cllm.page.formulas import add_formulas


def words(text: str) -> set[str]:
    """The words of a text."""
    return set(text.split())


# Bounds of one text, so that no text holds a worker for long. What exceeds them is shown as text.
_MOST_MARKS = 6000
_MARK = re.compile(r"[\n!$&*<>\[\\\]_`|~]")  # what Markdown looks at; other marks begin a line
_LONGEST_FORMULA = 2000  # characters
_FORMULAS = 8 * 1024  # characters of all formulas; each counts as 20 or more
_LONGEST_CODE = 8 * 1024  # characters that are highlighted
_CODE = 16 * 1024  # characters of all highlighted code; each block counts as 200 or more
_SEARCHED = 512 * 1024  # characters that are searched for the ends of links that have none
# Lexers are regular expressions over text of strangers, so only those of common languages run.
LANGUAGES = frozenset(
    words(
        """
        bash c c# c++ cpp csharp css diff docker dockerfile go graphql haskell html ini java
        javascript js json jsx julia kotlin latex lua make makefile markdown md perl php
        powershell py python r rb ruby rs rust scala sh shell sql swift tex toml ts tsx
        typescript xml yaml yml zsh
        """
    )
)
_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True)

_MATH = words(
    """
    math mrow mi mn mo ms mtext mspace msup msub msubsup mfrac msqrt mroot mover munder munderover
    mtable mtr mtd mstyle mpadded mphantom menclose mmultiscripts mprescripts none
    """
)
_TAGS = _MATH | words(
    """
    p br hr h1 h2 h3 h4 h5 h6 em strong s code pre span blockquote ul ol li a img
    table thead tbody tr th td
    """
)
_LENGTHS = {"width", "height", "depth", "lspace", "rspace", "voffset", "linethickness"}
_ATTRIBUTES = {
    **{
        tag: {"mathvariant", "stretchy", "fence", "form", "separator", "accent", "columnalign",
              "rowspacing", "columnspacing", "displaystyle", "notation", "minsize", "maxsize",
              "columnlines", "rowlines", "movablelimits", "largeop", *_LENGTHS}
        for tag in _MATH
    },
    "a": {"href", "title", "target"},
    "img": {"src", "alt", "title"},
    "ol": {"start"},
    "th": {"align"},
    "td": {"align"},
    "span": {"class"},
    "code": {"class", "data-language"},
}  # fmt: skip
_ATTRIBUTES["math"] = {"display"}
_CLASSES = re.compile(r"[a-z0-9]{1,8}( [a-z0-9]{1,8})*")
_LINK = re.compile(r"(https?://|mailto:)[^\s]+", re.IGNORECASE)
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+")


def render(text: str) -> str:
    """HTML without scripts, styles, forms or requests to other servers."""
    if len(_MARK.findall(text)) > _MOST_MARKS:
        lines = escape(text, quote=False).replace("\n", "<br>\n")
        return f"<p>{lines}</p>\n"
    html = _PARSER.render(text)
    return nh3.clean(
        html,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=_filtered,
        url_schemes={"http", "https", "mailto", "data"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def _filtered(tag: str, name: str, value: str) -> str | None:
    """An attribute's value, or None to drop it."""
    checks = {"href": _LINK, "src": _PICTURE, "class": _CLASSES}
    check = checks.get(name)
    return value if check is None or check.fullmatch(value) else None


def _fence(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
) -> str:
    token = tokens[index]
    language = (token.info.split() or [""])[0].lower()
    named = f' data-language="{escape(language[:24])}"' if language else ""
    code = token.content
    bounded = len(code) <= _LONGEST_CODE and _spend(env, "code", max(200, len(code)), _CODE)
    shown = _highlighted(code, language) if language in LANGUAGES and bounded else escape(code)
    return f"<pre><code{named}>{shown}</code></pre>\n"


def _spend(env: MutableMapping[str, Any], name: str, cost: int, most: int) -> bool:
    """Whether a text's budget of this name, `most` in all, still has the cost; takes it then."""
    spent = env.get(name, 0) + cost
    if spent > most:
        return False
    env[name] = spent
    return True


def _highlighted(code: str, language: str) -> str:
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return escape(code)
    return str(highlight(code, lexer, _FORMATTER))


def _picture(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
) -> str:
    """A picture in the text itself, or a link: no other server learns that it was shown."""
    token = tokens[index]
    source = str(token.attrs.get("src", ""))
    name = renderer.renderInlineAsText(token.children, options, env) or source
    if _PICTURE.fullmatch(source):
        return f'<img src="{escape(source)}" alt="{escape(name)}">'
    return f'<a href="{escape(source)}">{escape(name)}</a>'


def _formula(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
) -> str:
    token = tokens[index]
    latex, display = token.content, token.type == "formula_block"
    bounded = _spend(env, "formulas", max(20, len(latex)), _FORMULAS)
    if bounded and len(latex) <= _LONGEST_FORMULA:
        try:
            return str(convert(latex, display="block" if display else "inline"))
        except Exception:  # of any kind, for LaTeX that it does not know
            pass
    tag = "<pre><code>{}</code></pre>" if display else "<code>{}</code>"
    return tag.format(escape(latex))


def _align(state: Any) -> None:
    """The columns' alignment as an attribute: the page's policy allows no inline style."""
    for token in state.tokens:
        style = str(token.attrs.pop("style", "")) if token.type in ("th_open", "td_open") else ""
        if style:
            token.attrSet("align", style.removeprefix("text-align:"))


def _link(state: StateInline, silent: bool) -> bool:
    return _searched(state) and (link(state, silent) or _in_vain(state))


def _image(state: StateInline, silent: bool) -> bool:
    return _searched(state) and (image(state, silent) or _in_vain(state))


def _searched(state: StateInline) -> bool:
    """Whether ends of links are still searched; a search that fails reads all that follows."""
    return bool(state.env.get("searched", 0) < _SEARCHED)


def _in_vain(state: StateInline) -> bool:
    if state.src.startswith(("[", "!["), state.pos):
        state.env["searched"] = state.env.get("searched", 0) + state.posMax - state.pos
    return False


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 40})
    parser.enable(["table", "strikethrough"])
    parser.inline.ruler.at("link", _link)
    parser.inline.ruler.at("image", _image)
    add_formulas(parser)
    parser.core.ruler.push("align", _align)
    for name, rule in (
        ("fence", _fence),
        ("image", _picture),
        ("formula", _formula),
        ("formula_block", _formula),
    ):
        parser.add_render_rule(name, rule)
    return parser


_PARSER = _parser()
