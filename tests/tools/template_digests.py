"""Renders the tests' conversations with transformers, whose results the tests compare with.

    python -m venv /tmp/venv && /tmp/venv/bin/pip install transformers pytest
    /tmp/venv/bin/python -m tests.tools.template_digests
    /tmp/venv/bin/python -m tests.tools.template_digests --show Qwen-Qwen3-0.6B "one question"

Renders tests/api/templates/conversations.json with every template that scripts/test.sh fetched,
and writes digests of the results to digests.json next to it; null where transformers raises. With
another version of llama-cpp-python: change it in digests.json and run scripts/test.sh first.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers.utils import chat_template_utils

from tests.api.published_templates import (
    BOS,
    CONVERSATIONS,
    DIGESTS,
    EOS,
    FOLDER,
    PLACE,
    TOOLS,
    digest,
    with_text,
)

NOW = datetime(2026, 11, 24, 12, 30)


class FixedDate(datetime):
    """A clock that stands still, for templates that tell the date."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return NOW


def rendered(tokenizer: Any, source: str, case: dict[str, Any], as_text: bool) -> str | None:
    """What apply_chat_template makes of a case; None where it raises.

    as_text: with the arguments of tool calls as JSON text.
    """
    options = {"add_generation_prompt": not case.get("continued"), **case.get("variables", {})}
    if "tools" in case:
        options["tools"] = [TOOLS[name] for name in case["tools"]]
    try:
        text: str = tokenizer.apply_chat_template(
            with_text(case["messages"]) if as_text else case["messages"],
            chat_template=source,
            tokenize=False,
            continue_final_message=bool(case.get("continued")),
            **options,
        )
    except Exception:  # the template's own refusals among them
        return None
    return text


def main() -> None:
    """Write the digests of all templates, or print one case of one template."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--show", nargs=2, metavar=("TEMPLATE", "CASE"), help="print its two renderings instead"
    )
    show = parser.parse_args().show
    chat_template_utils.datetime = FixedDate
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=BOS, eos_token=EOS
    )
    if show:
        name, case = show
        source = (PLACE / f"{name}.jinja").read_text(encoding="utf-8")
        print(rendered(tokenizer, source, CONVERSATIONS[case], as_text=False))
        print(rendered(tokenizer, source, CONVERSATIONS[case], as_text=True))
        return
    templates = {}
    for path in sorted(PLACE.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        cases: dict[str, str | None] = {}
        as_text: dict[str, str] = {}  # where the template takes the arguments as text alone
        for name, case in CONVERSATIONS.items():
            text = rendered(tokenizer, source, case, False)
            cases[name] = text if text is None else digest(text)
            text = rendered(tokenizer, source, case, True)
            if cases[name] is None and text is not None:
                as_text[name] = digest(text)
        templates[path.stem] = {"source": digest(source), "cases": cases, "as text": as_text}
        print(f"{path.stem}: {sum(map(bool, cases.values()))} of {len(cases)} rendered")
    versions = {
        "llama-cpp-python": DIGESTS["llama-cpp-python"],
        "transformers": transformers.__version__,
    }
    text = json.dumps({**versions, "templates": templates}, indent=1) + "\n"
    (FOLDER / "digests.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
