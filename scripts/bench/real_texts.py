"""Requests in real language, by what is asked: edits, quotations, code, JSON, and free text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

PASSAGES = (
    "The ferry to the island leaves at seven in the morning and comes back at six in the evening. "
    "In winter it runs only on Tuesdays and Fridays, because few people travel then. Tickets are "
    "sold at the yellow kiosk next to the pier, and children under ten pay nothing. The crossing "
    "takes forty minutes when the sea is calm. Dogs are allowed on the lower deck if they are kept "
    "on a leash.",
    "Marta Lindqvist opened her bakery in 1998 in a narrow street behind the town hall. She starts "
    "work at three in the morning with two assistants, Jonas and Aylin. Their rye bread needs "
    "twenty hours to rise and is sold out before noon. Last spring she bought a second oven from a "
    "bakery in Bergen that had closed. Now the shop also sells cinnamon rolls on Sundays.",
    "Our team moved the billing service to the new cluster on Monday night. The move took three "
    "hours instead of one, since a certificate had expired and had to be replaced by hand. No "
    "invoices were lost, but forty customers received an email twice. We will check the dates of "
    "all certificates every week from now on. The old machines will be switched off on 12 March.",
    "The river bends twice before it reaches the village of Orlov. On its left bank stands a mill "
    "that has not turned since the flood of 1954. Every August the villagers hang lanterns from "
    "its broken wheel and tell the children about the miller who could speak to the eels. The "
    "lanterns burn until dawn. In the morning the eels are said to swim upstream.",
)
TYPOS = {
    "ferry": "fery", "because": "becuase", "children": "childern", "allowed": "alowed",
    "opened": "openned", "narrow": "narow", "assistants": "asistants", "second": "secund",
    "service": "servise", "expired": "expird", "received": "recieved", "customers": "custmers",
    "reaches": "reeches", "village": "vilage", "broken": "brokken", "lanterns": "lantens",
}  # fmt: skip
CODE = (
    """def mean_by_group(rows, key):
    totals = {}
    counts = {}
    for row in rows:
        group = row[key]
        totals[group] = totals.get(group, 0) + row["value"]
        counts[group] = counts.get(group, 0) + 1
    result = {}
    for group in totals:
        result[group] = totals[group] / counts[group]
    return result
""",
    """class Stack:
    def __init__(self, limit):
        self.items = []
        self.limit = limit

    def push(self, item):
        if len(self.items) >= self.limit:
            raise OverflowError("the stack is full")
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("the stack is empty")
        return self.items.pop()
""",
    """def read_config(path):
    config = {}
    with open(path) as file:
        for line in file:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, value = line.split("=", 1)
            config[name.strip()] = value.strip()
    return config
""",
    """function longestWord(text) {
  const words = text.split(" ");
  let longest = "";
  for (const word of words) {
    if (word.length > longest.length) {
      longest = word;
    }
  }
  return longest;
}
""",
)
NAMES = (("totals", "sums"), ("items", "entries"), ("config", "settings"), ("longest", "best"))
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "sentences": {
            "type": "array", "minItems": 3, "maxItems": 5,
            "items": {"type": "string", "minLength": 20, "maxLength": 160},
        },
    },
    "required": ["title", "sentences"],
    "additionalProperties": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind: each is the user's message of a chat.

    repeats: answers repeat parts of the request, so drafts should pay. schema: what constrains the
    answers.
    """

    name: str
    requests: tuple[str, ...]
    repeats: bool = True
    schema: dict[str, Any] | None = None


def _with_typos(text: str) -> str:
    return " ".join(TYPOS.get(word, word) for word in text.split())


_EXTRACT = (
    "Put this text into JSON with the fields title and sentences, a list of its sentences, word "
    "for word:\n\n"
)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("typos", tuple(
            f"Fix the typos in this text and change nothing else:\n\n{_with_typos(text)}"
            for text in PASSAGES
        )),
        Kind("rename", tuple(
            f"Rename {old} to {new} in this code and show the whole code:\n\n```\n{code}```"
            for code, (old, new) in zip(CODE, NAMES, strict=True)
        )),
        Kind("code", tuple(
            f"Add comments to this code and show the whole code:\n\n```\n{code}```" for code in CODE
        )),
        Kind("json", tuple(_EXTRACT + text for text in PASSAGES)),
        Kind("json, constrained", tuple(_EXTRACT + text for text in PASSAGES), schema=SCHEMA),
        Kind("quotes", tuple(
            f"Summarize this text by quoting its two most important sentences:\n\n{text}"
            for text in PASSAGES
        )),
        Kind("answers", tuple(
            f"{text}\n\nWhat does this text say about {topic}? Explain what it means."
            for text, topic in zip(
                PASSAGES, ("tickets", "the bread", "certificates", "the mill"), strict=True
            )
        ), repeats=False),
        Kind("stories", tuple(
            f"Write a short story about {subject}."
            for subject in (
                "a lighthouse keeper who collects clocks", "two sisters and a stubborn donkey",
                "the last train of the year", "a gardener on the moon",
            )
        ), repeats=False),
        Kind("explanations", tuple(
            f"Explain {subject} to a curious teenager."
            for subject in (
                "why the sky is blue", "how a refrigerator works", "what inflation is",
                "how vaccines protect us",
            )
        ), repeats=False),
    )
}  # fmt: skip


def answers_schema(text: str) -> bool:
    """Whether a constrained answer is a document with the schema's fields."""
    return set(json.loads(text)) == set(SCHEMA["required"])
