"""Random small worlds for the exact audit: a target, a drafter, confidences and a step cost, all as finite tables.

A context is a node of the complete vocab-ary tree: the root is 0 and the child of `node` by token t is
node * vocab + t + 1, so that a table is a plain list indexed by node.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.cost import StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import survival_units
from sglang_dspark.policies.drawing import random_cost

Law = tuple[tuple[int, int, float], ...]
"""(node after the step, accepted draft tokens, probability)."""

_LIMITS = {"requests": (1, 4), "gamma": (1, 5), "vocab": (2, 4), "steps": (3, 8)}
_MOST_NODES = 200_000
_MOST_OUTPUTS = 2_000_000


@dataclass(frozen=True)
class Shape:
    """Size of a world. requests: slots of the batch; one more request joins when the first has finished."""

    requests: int = 2
    gamma: int = 2
    vocab: int = 2
    steps: int = 4

    def __post_init__(self) -> None:
        for key, (low, high) in _LIMITS.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise InputError(f"{key}={value} is refused, expected {low}..{high}")
        nodes = self.vocab ** (self.steps + self.gamma + 1)
        outputs = self.vocab ** (self.requests * self.steps)
        if nodes > _MOST_NODES or outputs > _MOST_OUTPUTS:
            raise InputError(
                f"requests={self.requests}, gamma={self.gamma}, vocab={self.vocab}, steps={self.steps} has up to "
                f"{outputs} joint outputs over {nodes} contexts, expected at most {_MOST_OUTPUTS} over {_MOST_NODES}"
            )


@dataclass
class World:
    """One random instance. Every list is indexed by request first; the last request is the one that joins.

    lengths: requested output tokens. target[r][node]: next-token law. draft[r][j][node]: law of draft token j + 1
    after `node` (the context and the earlier draft tokens). confidence[r][j][node]: of draft token j + 1.
    overlapped: outcomes arrive two steps late and a finished request leaves one step late (else one step and at once).
    drafted_bonus: at a cap the bonus is SGLang's, the draft token there accepted or the residual drawn; else a fresh
    draw from the target. post_token: a fault for tests, confidence j then sees draft token j itself.
    """

    shape: Shape
    lengths: list[int]
    target: list[list[list[float]]]
    draft: list[list[list[list[float]]]]
    confidence: list[list[list[float]]]
    cost: StepCost
    overlapped: bool
    drafted_bonus: bool
    post_token: bool = False
    depth: list[int] = field(default_factory=list)
    rows: list[tuple[float, ...]] = field(default_factory=list)
    units: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.depth = [0]
        for node in range(1, len(self.target[0]) * self.shape.vocab + 1):  # a bonus may lie one level below the tables
            self.depth.append(self.depth[(node - 1) // self.shape.vocab] + 1)
        self._row_ids: dict[tuple[float, ...], int] = {}
        self._laws: dict[tuple[int, int, tuple[int, ...], int], Law] = {}

    @property
    def seen(self) -> int:
        """How many draft tokens the confidences of a block depend on."""
        return self.shape.gamma if self.post_token else self.shape.gamma - 1

    def row_of(self, request: int, node: int, block: tuple[int, ...]) -> int:
        """Index into `rows` (confidences) and `units` (survivals) of a block; block: at least `seen` tokens."""
        values = []
        for position in range(self.shape.gamma):
            if self.post_token:
                node = self.child(node, block[position])
                values.append(self.confidence[request][position][node])
            else:
                values.append(self.confidence[request][position][node])
                if position < self.shape.gamma - 1:
                    node = self.child(node, block[position])
        row = tuple(values)
        if row not in self._row_ids:
            self._row_ids[row] = len(self.rows)
            self.rows.append(row)
            self.units.append(tuple(survival_units(np.array([row], dtype=np.float32))[0].tolist()))
        return self._row_ids[row]

    def child(self, node: int, token: int) -> int:
        return node * self.shape.vocab + token + 1

    def outcome(self, request: int, node: int, block: tuple[int, ...], verified: int) -> Law:
        """Law of a step of one request that verifies `verified` tokens of `block`, cut at the requested length.

        block: the draft tokens that are known; those beyond are drawn from the drafter.
        """
        key = (request, node, block, verified)
        if key not in self._laws:
            self._laws[key] = _Verification(self, request, block, verified).law(node)
        return self._laws[key]

    def target_law(self) -> NDArray[np.float64]:
        """Joint law of all outputs, a product over requests: axis r runs over the outputs of request r."""
        joint = np.ones(())
        for request, length in enumerate(self.lengths):
            leaves = np.ones(1)
            first = 0
            for _ in range(length):
                laws = np.array(self.target[request][first : first + leaves.size])
                leaves = (leaves[:, None] * laws).ravel()
                first = first * self.shape.vocab + 1
            joint = np.multiply.outer(joint, leaves)
        return joint

    def leaf(self, request: int, node: int) -> int:
        """Position of a finished output on its axis of `target_law`."""
        vocab, length = self.shape.vocab, self.lengths[request]
        return node - (vocab**length - 1) // (vocab - 1)


class _Verification:
    """Speculative sampling of one block: accept min(1, p / q), else the residual; a bonus token at the end."""

    def __init__(self, world: World, request: int, block: tuple[int, ...], verified: int) -> None:
        self.world, self.block, self.verified = world, block, verified
        self.target, self.draft = world.target[request], world.draft[request]
        self.length = world.lengths[request]
        self.mass: defaultdict[tuple[int, int], float] = defaultdict(float)

    def law(self, node: int) -> Law:
        self._verify(node, 0, 1.0)
        return tuple((end, accepted, mass) for (end, accepted), mass in self.mass.items() if mass > 0)

    def _verify(self, node: int, position: int, mass: float) -> None:
        if position == self.verified:
            if self.world.drafted_bonus and position < self.world.shape.gamma:
                self._accept_or_residual(node, position, mass, goes_on=False)
            else:
                for token, chance in enumerate(self.target[node]):
                    self._commit(self.world.child(node, token), position, mass * chance)
            return
        self._accept_or_residual(node, position, mass, goes_on=True)

    def _accept_or_residual(self, node: int, position: int, mass: float, *, goes_on: bool) -> None:
        p, q = self.target[node], self.draft[position][node]
        known = ((self.block[position], 1.0),) if position < len(self.block) else tuple(enumerate(q))
        rejected = 0.0
        for token, share in known:
            accept = min(1.0, p[token] / q[token])
            rejected += mass * share * (1.0 - accept)
            child = self.world.child(node, token)
            if not goes_on:
                self._commit(child, position, mass * share * accept)
            elif accept > 0:
                self._verify(child, position + 1, mass * share * accept)
        residual = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
        total = sum(residual)
        for token, rest in enumerate(residual):
            if rest > 0 and rejected > 0:
                self._commit(self.world.child(node, token), position, rejected * rest / total)

    def _commit(self, node: int, accepted: int, mass: float) -> None:
        while self.world.depth[node] > self.length:
            node = (node - 1) // self.world.shape.vocab
        self.mass[node, accepted] += mass


def make_world(shape: Shape, seed: int, index: int, *, post_token: bool = False) -> World:
    """Instance `index` of `seed`; the same in every process and for every policy."""
    rng = np.random.default_rng([seed, index])
    overlapped, drafted_bonus = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    lengths = _lengths(rng, shape, overlapped)
    nodes = sum(shape.vocab**depth for depth in range(max(lengths) + shape.gamma + 1))
    low = 0.0 if rng.random() < 0.2 else rng.uniform(0.02, 0.6)
    palette = np.array([1.0, low, rng.uniform(0.4, 0.999)], dtype=np.float32)
    target, draft, confidence = [], [], []
    for _ in lengths:
        target.append(_laws(rng, nodes, shape.vocab, sharp=0.1).tolist())
        draft.append([_laws(rng, nodes, shape.vocab, sharp=0.0).tolist() for _ in range(shape.gamma)])
        picks = rng.choice(len(palette), size=(shape.gamma, nodes), p=[0.3, 0.35, 0.35])
        confidence.append(palette[picks].astype(np.float64).tolist())
    cost = random_cost(rng, shape.requests, shape.gamma, palette)
    return World(shape, lengths, target, draft, confidence, cost, overlapped, drafted_bonus, post_token)


def make_ranks(shape: Shape, seed: int, index: int, *, post_token: bool = False) -> tuple[World, World]:
    """Two ranks of instance `index`: requests and models of their own, one engine and its costs."""
    one = make_world(shape, seed, index, post_token=post_token)
    for other in range(1, 1000):  # of its own draws, but of the same engine
        found = make_world(shape, seed + 1_000_003 * other, index, post_token=post_token)
        if (found.overlapped, found.drafted_bonus) == (one.overlapped, one.drafted_bonus):
            found.cost = one.cost
            return one, found
    raise AssertionError("two coins never fell alike")


def _lengths(rng: np.random.Generator, shape: Shape, overlapped: bool) -> list[int]:
    """Requested lengths such that everything has ended within the steps: the first ends early, the last joins then."""
    late = 1 if overlapped else 0
    most = shape.steps - late - 1 if shape.requests == 1 else (shape.steps - late) // 2
    first = int(rng.integers(1, max(1, most) + 1))
    joins = int(rng.integers(1, min(3, shape.steps - first - late) + 1))
    others = [int(rng.integers(max(1, shape.steps - 1), shape.steps + 1)) for _ in range(shape.requests - 1)]
    return [first, *others, joins]


def _laws(rng: np.random.Generator, nodes: int, vocab: int, sharp: float) -> NDArray[np.float64]:
    """Dirichlet laws [nodes, vocab]; a share `sharp` of them is certain of one token."""
    laws = np.maximum(rng.dirichlet(np.full(vocab, 0.8), size=nodes), 1e-6)
    certain = rng.random(nodes) < sharp
    laws[certain] = np.eye(vocab)[rng.integers(0, vocab, int(certain.sum()))]
    return laws / laws.sum(axis=1, keepdims=True)
