"""What the text of a generation must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["json_schema", "json_object", "gbnf", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A language; `source` is the schema as JSON text, the grammar or the expression."""

    kind: Kind
    source: str = ""
