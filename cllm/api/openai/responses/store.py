"""Stored responses, in memory: each tenant's own, bounded in number and bytes.

A response stores its own input and output, and refers to the one before it. Where there is no room,
the tenant that holds the most loses its oldest response first. What a kept response continues stays
until that one goes, so that a conversation is never cut in its middle.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass

from msgspec import Struct
from msgspec.json import Decoder

from cllm.api.openai.responses.schemas import Item

MOST = 10_000
"""Responses that are stored at a time."""

_MADE_FOR = re.compile(r"[0-9a-f]{32}")  # a generation's id
_EACH = 1024  # bytes of a response in addition to its texts, roughly


class _WithOutput(Struct):
    output: list[Item]


_items = Decoder(list[Item]).decode
_response = Decoder(_WithOutput).decode


@dataclass(eq=False, slots=True)
class Stored:
    """One response. input: its items, as JSON. response: the whole object, as JSON.

    uses: the table and the responses that continue this one; 0: not counted.
    """

    id: str
    input: bytes
    response: bytes
    before: Stored | None = None
    uses: int = 0

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.input) + len(self.response) + _EACH

    def given(self) -> list[Item]:
        """All items that the model was given, the oldest first."""
        *before, own = self._chain()
        return [
            item
            for each in before
            for item in (*_items(each.input), *_response(each.response).output)
        ] + _items(own.input)

    def items(self) -> list[Item]:
        """The conversation: the items that were given, and the output."""
        return self.given() + _response(self.response).output

    def own(self) -> list[Item]:
        """The items of this response alone."""
        return _items(self.input) + _response(self.response).output

    def _chain(self) -> list[Stored]:
        chain: list[Stored] = []
        each: Stored | None = self
        while each is not None:
            chain.append(each)
            each = each.before
        return chain[::-1]


class _Table:
    """The responses of one tenant, the oldest first, and the bytes that they hold."""

    __slots__ = ("bytes", "stored")

    def __init__(self) -> None:
        self.bytes = 0
        self.stored: OrderedDict[str, Stored] = OrderedDict()

    def add(self, stored: Stored) -> int:
        """The bytes that it adds."""
        self.stored[stored.id] = stored
        return self._count(stored, 1)

    def remove(self, id: str) -> int:
        """The bytes that it adds, which are negative."""
        return self._count(self.stored.pop(id), -1)

    def _count(self, stored: Stored, change: int) -> int:
        """Count a use more or less, of those before it too if it was unused or becomes so."""
        added = 0
        each: Stored | None = stored
        while each is not None:
            each.uses += change
            if each.uses != max(change, 0):
                break
            added += change * each.size
            each = each.before
        self.bytes += added
        return added


class ResponseStore:
    """All stored responses. Any thread may call it."""

    def __init__(self, most_bytes: int, most: int = MOST) -> None:
        """most_bytes: of all tenants together; 0: nothing is stored."""
        self.most_bytes = most_bytes
        self._most = most
        self._lock = threading.Lock()
        self._tables: dict[str, _Table] = {}
        self._number = 0
        self._bytes = 0

    def get(self, tenant: str, id: str) -> Stored | None:
        """The tenant's response of this id."""
        with self._lock:
            table = self._tables.get(tenant)
            return table.stored.get(id) if table is not None else None

    def item(self, tenant: str, id: str) -> Item | None:
        """A stored item; its id has its response's in it."""
        made = _MADE_FOR.search(id)
        stored = self.get(tenant, f"resp_{made[0]}") if made is not None else None
        own = stored.own() if stored is not None else ()
        return next((item for item in own if item.id == id), None)

    def put(self, tenant: str, stored: Stored) -> None:
        """Store a response, and drop others where there is no room."""
        with self._lock:
            self._bytes += self._tables.setdefault(tenant, _Table()).add(stored)
            self._number += 1
            while self._number > self._most or self._bytes > self.most_bytes:
                largest = max(self._tables, key=lambda name: self._tables[name].bytes)
                self._remove(largest, next(iter(self._tables[largest].stored)))

    def delete(self, tenant: str, id: str) -> bool:
        """Forget a response; whether it was there."""
        with self._lock:
            table = self._tables.get(tenant)
            if table is None or id not in table.stored:
                return False
            self._remove(tenant, id)
            return True

    def _remove(self, tenant: str, id: str) -> None:
        table = self._tables[tenant]
        self._bytes += table.remove(id)
        self._number -= 1
        if not table.stored:
            del self._tables[tenant]
