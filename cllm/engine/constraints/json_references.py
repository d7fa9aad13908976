"""What a `$ref` names in a JSON schema: pointers, anchors, and `$id`s within the document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the document: its JSON pointer from the root, and the base of its references."""

    pointer: str
    value: Any
    base: str

    def at(self, *steps: str | int) -> Place:
        """The part below these keys and indices."""
        pointer, value, base = self.pointer, self.value, self.base
        for step in steps:
            pointer += "/" + str(step).replace("~", "~0").replace("/", "~1")
            value = value[step]
            base = _base_in(value, base)
        return Place(pointer, value, base)


class References:
    """Resolves the references of one document."""

    __slots__ = ("_anchors", "_resources", "root")

    def __init__(self, document: Any) -> None:
        self.root = Place("", document, _base_in(document, ""))
        self._resources: dict[str, Place] = {}
        self._anchors: dict[tuple[str, str], Place] = {}

    def find(self, reference: str, base: str) -> Place | None:
        """What the reference names where `base` applies; None: nothing in this document."""
        address, fragment = urldefrag(reference)
        fragment = unquote(fragment)
        resource: Place | None = self.root
        if address or base != self.root.base or (fragment and not fragment.startswith("/")):
            self._scan()
            resource = self._resources.get(_joined(base, address) if address else base)
        if resource is None:
            return None
        if fragment and not fragment.startswith("/"):
            return self._anchors.get((resource.base, fragment))
        place = resource
        for step in fragment.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            value = place.value
            if isinstance(value, dict) and name in value:
                place = place.at(name)
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                place = place.at(int(name))
            else:
                return None
        return place

    def _scan(self) -> None:
        """Find anchors and embedded resources, which few documents have."""
        if self._resources:
            return
        self._resources = {"": self.root, self.root.base: self.root}
        for place in _all(self.root):
            self._resources.setdefault(place.base, place)
            for keyword in ("$anchor", "$id", "id"):
                name = place.value.get(keyword)
                if isinstance(name, str) and (keyword == "$anchor" or name.startswith("#")):
                    self._anchors.setdefault((place.base, name.lstrip("#")), place)


def _base_in(value: Any, base: str) -> str:
    """The base within this value: its own `$id` changes it."""
    for keyword in ("$id", "id"):
        name = value.get(keyword) if isinstance(value, dict) else None
        if isinstance(name, str) and not name.startswith("#"):
            return urldefrag(_joined(base, name))[0]
    return base


def _joined(base: str, address: str) -> str:
    try:
        return urljoin(base, address)
    except ValueError:  # such as an unfinished IPv6 address
        return address


def _all(root: Place) -> Iterator[Place]:
    """The objects of the document, the outer before the inner."""
    waiting = [root]
    while waiting:
        place = waiting.pop()
        if isinstance(place.value, dict):
            yield place
            waiting += [place.at(key) for key in reversed(place.value)]
        elif isinstance(place.value, list):
            waiting += [place.at(index) for index in reversed(range(len(place.value)))]
