"""Acceptance from records of a live server.

A request's block at an anchor that was recorded is that block. At any other anchor it is one of the `NEAREST` recorded
blocks of the same request around that anchor, drawn by counter; a request without any draws first a request of its
domain and sampling temperature, then one of its blocks. Drawing such blocks afresh keeps the mean accepted length of
what was recorded; always taking the next recorded block would not: short blocks would be met more often.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError
from sglang_dspark.policies import survival_units
from sglang_dspark.records.blocks import Blocks
from sglang_dspark.records.schema import RequestRecord
from simulator.blocks.acceptance import BlockTable
from simulator.blocks.random import Streams

Ints = NDArray[np.int64]

NEAREST = 4
_CHUNK = 512  # anchors whose draws belong to one stream


class RecordedAcceptance:
    """An `AcceptanceSource` of recorded, uncensored blocks."""

    def __init__(
        self, blocks: Blocks, requests: list[RequestRecord], seed: int, known: Iterable[RequestRecord] = ()
    ) -> None:
        """requests: of the trace, in its order. known: others that blocks may be of.

        InputError if no block can serve a request or anchors are missing.
        """
        if blocks.confidence is None:
            raise InputError("the records hold no confidences (static mode), expected blocks with them")
        if bool((blocks.anchor < 0).any()):
            raise InputError("the records do not say at which output position their blocks stand")
        self.gamma = blocks.gamma
        order = np.lexsort((blocks.anchor, blocks.request))
        self._confidence, self._depth = blocks.confidence[order], blocks.depth[order]
        self._units = survival_units(self._confidence)
        self._anchor = blocks.anchor[order]
        number = {rid: index for index, rid in enumerate(blocks.rids)}
        wanted = np.array([number.get(request.rid, -1) for request in requests], dtype=np.int64)
        self._begin = np.searchsorted(blocks.request[order], wanted, side="left")
        self._end = np.searchsorted(blocks.request[order], wanted, side="right")
        self._pool = _pools(blocks, order, requests, known)
        self._draws = Streams(seed, "recorded-block")
        self.strangers = int((self._end == self._begin).sum())

    def fill(self, request: int, first: int, out: BlockTable) -> None:
        """See `AcceptanceSource`."""
        anchors = first + np.arange(len(out.depth), dtype=np.int64)
        chosen = self._choose(request, anchors)
        out.depth[:] = self._depth[chosen]
        out.units[:] = self._units[chosen]
        if out.confidence is not None:
            out.confidence[:] = self._confidence[chosen]

    def _choose(self, request: int, anchors: Ints) -> Ints:
        """Index of the block for every anchor [n]."""
        begin, end = int(self._begin[request]), int(self._end[request])
        draws = self._counted(request, anchors)
        if begin == end:
            starts, counts = self._pool[request]
            which = draws % len(starts)
            return starts[which] + (draws // len(starts)) % counts[which]
        own = self._anchor[begin:end]
        position = np.searchsorted(own, anchors)
        recorded = (position < len(own)) & (own[np.minimum(position, len(own) - 1)] == anchors)
        width = min(NEAREST, len(own))
        lowest = np.clip(position - width // 2, 0, len(own) - width)
        return begin + np.where(recorded, position, lowest + draws % width)

    def _counted(self, request: int, anchors: Ints) -> Ints:
        """One draw an anchor, the same whoever asks and from where."""
        chunks = [
            self._draws.at(request, chunk).integers(1 << 62, size=_CHUNK)
            for chunk in range(int(anchors[0]) // _CHUNK, int(anchors[-1]) // _CHUNK + 1)
        ]
        return np.concatenate(chunks)[anchors - anchors[0] // _CHUNK * _CHUNK]


def _pools(
    blocks: Blocks, order: Ints, requests: list[RequestRecord], known: Iterable[RequestRecord]
) -> list[tuple[Ints, Ints]]:
    """For every request: where the blocks of each recorded request like it begin, and how many they are."""
    numbers, starts, counts = np.unique(blocks.request[order], return_index=True, return_counts=True)
    domain = {request.rid: request.domain for request in (*known, *requests)}
    names = np.array([domain.get(blocks.rids[number], "") for number in numbers])
    temperature = np.nan_to_num(blocks.temperature[order][starts], nan=-1.0)
    found: dict[tuple[str, float], tuple[Ints, Ints]] = {}
    for request in requests:
        key = (request.domain, request.temperature)
        if key not in found:
            alike = (names == key[0]) & (np.abs(temperature - key[1]) < 1e-3)
            alike = alike if alike.any() else np.ones(len(numbers), dtype=bool)
            found[key] = starts[alike], counts[alike]
    return [found[request.domain, request.temperature] for request in requests]
