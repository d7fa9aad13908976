"""Radix trees of token sequences: the length of the prefix shared with a new one, per holder.

A lookup compares the new tokens with each branch once, regardless of its number of holders. There
is a tree per scope: a lookup never touches what is held in another one.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

from cllm.engine.sharing import Scope

H = TypeVar("H", bound=Hashable)


class _Node(Generic[H]):
    """The tokens from its parent to itself, and the holders whose tokens end here."""

    __slots__ = ("children", "edge", "holders", "parent")

    def __init__(self, edge: array[int], parent: _Node[H] | None) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[int, _Node[H]] = {}
        self.holders: set[H] = set()


class RadixTree(Generic[H]):
    """Holders of token sequences, one sequence each, found by their common prefixes."""

    def __init__(self) -> None:
        self._root: _Node[H] = _Node(array("i"), None)
        self._ends: dict[H, _Node[H]] = {}

    def __len__(self) -> int:
        """Number of holders."""
        return len(self._ends)

    def insert(self, holder: H, tokens: array[int]) -> None:
        """Let `holder` hold `tokens`, in place of what it held before."""
        self.remove(holder)
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = _Node(tokens[at:], node)
                node.children[tokens[at]] = child
                node = child
                break
            shared = common_prefix(child.edge, tokens[at:])
            if shared < len(child.edge):
                child = _split(child, shared)
            node, at = child, at + shared
        node.holders.add(holder)
        self._ends[holder] = node

    def remove(self, holder: H) -> None:
        """Forget a holder; nothing happens if it holds nothing."""
        node = self._ends.pop(holder, None)
        if node is None:
            return
        node.holders.discard(holder)
        while node.parent is not None and not node.holders and not node.children:
            del node.parent.children[node.edge[0]]
            node = node.parent
        if node.parent is not None and not node.holders and len(node.children) == 1:
            (child,) = node.children.values()
            child.edge = node.edge + child.edge
            child.parent = node.parent
            node.parent.children[child.edge[0]] = child

    def shared(self, tokens: array[int]) -> dict[H, int]:
        """Holder -> leading tokens shared with `tokens`; holders that share none are omitted."""
        found: dict[H, int] = {}
        node, depth = self._root, 0
        while True:
            child = node.children.get(tokens[depth]) if depth < len(tokens) else None
            if depth:
                found.update(dict.fromkeys(node.holders, depth))
                for other in node.children.values():
                    if other is not child:
                        _collect(other, depth, found)
            if child is None:
                return found
            matched = common_prefix(child.edge, tokens[depth:])
            depth += matched
            if matched < len(child.edge):
                _collect(child, depth, found)
                return found
            node = child


class RadixForest(Generic[H]):
    """A tree per scope; those without holders are dropped."""

    def __init__(self) -> None:
        self._trees: dict[Scope, RadixTree[H]] = {}
        self._scopes: dict[H, Scope] = {}

    def insert(self, holder: H, tokens: array[int], scope: Scope) -> None:
        """Let `holder` hold `tokens` in a scope, in place of what it held before."""
        if self._scopes.get(holder) != scope:
            self.remove(holder)
        tree = self._trees.get(scope)
        if tree is None:
            tree = self._trees[scope] = RadixTree()
        tree.insert(holder, tokens)
        self._scopes[holder] = scope

    def remove(self, holder: H) -> None:
        """Forget a holder; nothing happens if it holds nothing."""
        scope = self._scopes.pop(holder, None)
        if scope is not None:
            tree = self._trees[scope]
            tree.remove(holder)
            if not len(tree):
                del self._trees[scope]

    def shared(self, tokens: array[int], scope: Scope) -> dict[H, int]:
        """As RadixTree.shared, of the holders in the scope."""
        tree = self._trees.get(scope)
        return {} if tree is None else tree.shared(tokens)

    def __len__(self) -> int:
        """Number of scopes with a holder."""
        return len(self._trees)


def _split(node: _Node[H], at: int) -> _Node[H]:
    """Put a node in the middle of an edge, after its first `at` tokens; return it."""
    parent = node.parent
    assert parent is not None
    middle: _Node[H] = _Node(node.edge[:at], parent)
    parent.children[node.edge[0]] = middle
    node.edge = node.edge[at:]
    node.parent = middle
    middle.children[node.edge[0]] = node
    return middle


def _collect(node: _Node[H], depth: int, found: dict[H, int]) -> None:
    pending = [node]
    while pending:
        node = pending.pop()
        found.update(dict.fromkeys(node.holders, depth))
        pending.extend(node.children.values())


def common_prefix(one: array[int], other: array[int]) -> int:
    """Count the leading tokens that two sequences share."""
    n = min(len(one), len(other))
    if n == 0 or one[0] != other[0]:
        return 0
    different = np.frombuffer(one, np.int32, n) != np.frombuffer(other, np.int32, n)
    first = int(different.argmax())
    return first if different[first] else n
