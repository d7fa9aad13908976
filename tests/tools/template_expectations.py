"""Renders the tests' conversations with transformers, whose results the tests compare with.

    pip install transformers tokenizers
    python -m tests.tools.template_expectations

Reads tests/api/templates/: `models.json` (what a template's tokenizer calls its BOS and EOS),
NAME.jinja, `conversations.json` and `tools.json`. Writes NAME.json: case -> {"text"} or, where
transformers raises, {"error"}.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers.utils import chat_template_utils

TEMPLATES = Path(__file__).resolve().parent.parent / "api" / "templates"
NOW = datetime(2026, 11, 24, 12, 30)


class FixedDate(datetime):
    """A clock that stands still, for templates that tell the date."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return NOW


def rendered(tokenizer: Any, source: str, case: dict[str, Any], tools: dict[str, Any]) -> Any:
    """What apply_chat_template makes of a case."""
    options = {"add_generation_prompt": not case.get("continued"), **case.get("variables", {})}
    if "tools" in case:
        options["tools"] = [tools[name] for name in case["tools"]]
    try:
        text = tokenizer.apply_chat_template(
            case["messages"],
            chat_template=source,
            tokenize=False,
            continue_final_message=bool(case.get("continued")),
            **options,
        )
    except Exception as error:  # the template's own refusals among them
        return {"error": str(error)}
    return {"text": text}


def main() -> None:
    """Write one file of expectations for each template of the directory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, default=TEMPLATES)
    directory = parser.parse_args().directory
    chat_template_utils.datetime = FixedDate
    conversations = json.loads((TEMPLATES / "conversations.json").read_text())
    tools = json.loads((TEMPLATES / "tools.json").read_text())
    models = json.loads((directory / "models.json").read_text())
    for name, model in models.items():
        words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
        names = {key: model[key] for key in ("bos_token", "eos_token") if model.get(key)}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)
        source = (directory / f"{name}.jinja").read_text()
        found = {
            case: rendered(tokenizer, source, conversation, tools)
            for case, conversation in conversations.items()
        }
        written = {"transformers": transformers.__version__, "cases": found}
        text = json.dumps(written, ensure_ascii=False, indent=1) + "\n"
        (directory / f"{name}.json").write_text(text)
        print(f"{name}: {sum('text' in each for each in found.values())} of {len(found)} rendered")


if __name__ == "__main__":
    main()
