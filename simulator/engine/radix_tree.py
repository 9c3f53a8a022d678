"""A radix tree over blocks of prompts, with SGLang's locks and its least-recently-used eviction, counted in tokens.

SGLang 0.5.23 (mem_cache/unified_cache/unified_tree_core.py, components/full.py): a node holds a run of tokens; it is
split where a prompt leaves it. Running requests lock the path of their prompt. Eviction takes whole leaves that nobody
locks, the least recently walked over first; a parent that becomes a leaf can be next. SGLang compares tokens, this tree
blocks, since a trace tells no more.
"""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]

_NO_KEYS: Keys = np.zeros(0, dtype=np.int64)
_NOBODY_ASKS = -(2**62)


class Node:
    """A run of blocks. locks: running requests whose prompt goes through it. used: when it was last walked over.

    children: by the first key of each; one without keys is there under a number of its own below `_NOBODY_ASKS`.
    queued: whether eviction knows it.
    """

    __slots__ = ("parent", "key", "keys", "tokens", "children", "locks", "used", "queued")

    def __init__(self, parent: Node | None, key: int, keys: Keys, tokens: int) -> None:
        self.parent, self.key, self.keys, self.tokens = parent, key, keys, tokens
        self.children: dict[int, Node] = {}
        self.locks = self.used = 0
        self.queued = False


class RadixTree:
    """What one replica's cache holds.

    idle: tokens that nobody locks, which eviction may take. shared: tokens that locking requests have in common, those
    of a node once for every lock on it but the first.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.root = Node(None, 0, _NO_KEYS, 0)
        self.root.locks = 1
        self.idle = self.shared = 0
        self._time = 0
        self._evictable: list[tuple[int, int, Node]] = []  # heap of leaves by the time they were queued with
        self._order, self._nameless = count(), count(_NOBODY_ASKS, -1)

    def match(self, keys: Keys) -> tuple[Node, int]:
        """The node where the longest prefix of `keys` in the tree ends, and how many keys that are."""
        return self._walk(self.root, keys)

    def insert(self, node: Node, keys: Keys, tokens: int) -> Node:
        """Add `keys` (of `tokens` in all, none but the last key's block short) below a node; the node where they end.

        Nobody locks what is new.
        """
        node, found = self._walk(node, keys)
        if found == len(keys):
            return node
        return self.add_leaf(node, tokens - found * self.block_tokens, keys[found:])

    def add_leaf(self, parent: Node, tokens: int, keys: Keys = _NO_KEYS) -> Node:
        """A leaf that nobody locks; without keys nobody will ever find it."""
        key = keys.item(0) if len(keys) else next(self._nameless)
        leaf = parent.children[key] = Node(parent, key, keys, tokens)
        leaf.used = self._time
        self.idle += tokens
        self._queue(leaf)
        return leaf

    def lock(self, node: Node, above: Node | None = None) -> None:
        """A running request needs the path to `node`, of which it has locked the part down to `above` already."""
        top = above or self.root
        while node is not top:
            if node.locks:
                self.shared += node.tokens
            else:
                self.idle -= node.tokens
            node.locks += 1
            assert node.parent is not None
            node = node.parent

    def unlock(self, node: Node) -> None:
        """A request no longer needs the path to `node`."""
        while node.parent is not None:
            node.locks -= 1
            if node.locks:
                self.shared -= node.tokens
            else:
                self.idle += node.tokens
                self._queue(node)
            node = node.parent

    def touch(self, node: Node) -> None:
        """The path to `node` was just used."""
        self._time += 1
        up: Node | None = node
        while up is not None:
            up.used = self._time
            up = up.parent

    def evict_to(self, most: int) -> None:
        """Evict leaf by leaf until at most `most` tokens are left that nobody locks."""
        while self.idle > max(most, 0):
            queued, _, node = heapq.heappop(self._evictable)
            node.queued = False
            if node.used > queued:  # walked over since
                self._queue(node)
            elif not node.locks and not node.children:
                self._remove(node)

    def _queue(self, node: Node) -> None:
        """Make it known to eviction, which finds out whether it still may go: once, and only if it is a leaf."""
        if not (node.queued or node.locks or node.children):
            node.queued = True
            heapq.heappush(self._evictable, (node.used, next(self._order), node))

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        self.idle -= leaf.tokens
        del parent.children[leaf.key]
        self._queue(parent)

    def _walk(self, node: Node, keys: Keys) -> tuple[Node, int]:
        """Down from `node` along `keys` as far as the tree goes, splitting the node where it ends."""
        at = 0
        while at < len(keys):
            child = node.children.get(keys.item(at))
            if child is None:
                break
            same = _common(child.keys, keys[at:])
            node = child if same == len(child.keys) else self._split(child, same)
            at += same
            if node is not child:
                break
        self.touch(node)
        return node, at

    def _split(self, node: Node, keys: int) -> Node:
        """Put the first `keys` of a node into a parent of their own; the rest counts as just used (SGLang's :1523)."""
        parent = node.parent
        assert parent is not None
        head = parent.children[node.key] = Node(parent, node.key, node.keys[:keys], keys * self.block_tokens)
        head.locks = node.locks
        node.parent, node.key = head, node.keys.item(keys)
        node.keys, node.tokens = node.keys[keys:], node.tokens - head.tokens
        head.children[node.key] = node
        self._time += 1
        node.used = self._time
        return head


def _common(one: Keys, other: Keys) -> int:
    """How many leading keys are equal."""
    least = min(len(one), len(other))
    differ = one[:least] != other[:least]
    first = int(differ.argmax()) if least else 0
    return first if least and differ[first] else least
