"""Acceptance out of vLLM's per-request speculative metrics: accepted counts by draft length.

`acceptance_histogram_by_draft_length[k][j]` counts verify steps that accepted j of k draft tokens, the bonus not
counted (vLLM, docs/features/speculative_decoding/acceptance_metrics.md). Older servers give `acceptance_histogram`
alone, which is of one draft length where `num_draft_tokens` says that every step had all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sglang_dspark.cost import Assumption
from sglang_dspark.errors import InputError
from simulator.blocks.survival import MOST_POSITIONS, Positions

Histogram = dict[int, list[int]]
"""Draft length k -> k + 1 counts of steps by accepted draft tokens."""

_BY_LENGTH, _PLAIN = "acceptance_histogram_by_draft_length", "acceptance_histogram"


def histograms_of(value: Any, where: str) -> Iterator[Histogram]:
    """Every histogram in a JSON value: of metrics as they are, or of responses around them. InputError for bad ones."""
    if isinstance(value, list):
        for each in value:
            yield from histograms_of(each, where)
    if not isinstance(value, dict):
        return
    if isinstance(value.get(_BY_LENGTH), dict):
        yield _checked(value[_BY_LENGTH], where)
    elif isinstance(value.get(_PLAIN), list):
        yield _of_one_length(value, where)
    else:
        for key in ("metrics", "speculative_decoding"):
            yield from histograms_of(value.get(key), where)


def _checked(rows: dict[str, Any], where: str) -> Histogram:
    found: Histogram = {}
    for key, counts in rows.items():
        length = int(key) if key.isdigit() and int(key) <= MOST_POSITIONS else -1
        good = isinstance(counts, list) and len(counts) == length + 1
        if not good or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts):
            raise InputError(
                f"{where}: {_BY_LENGTH} {key!r} is {counts!r}, expected a draft length k up to {MOST_POSITIONS} and "
                "k + 1 counts"
            )
        found[length] = counts
    return found


def _of_one_length(metrics: dict[str, Any], where: str) -> Histogram:
    counts, length = metrics[_PLAIN], metrics.get("num_spec_tokens")
    steps, drafted = metrics.get("num_spec_steps"), metrics.get("num_draft_tokens")
    if not isinstance(length, int) or not isinstance(steps, int) or drafted != length * steps:
        raise InputError(
            f"{where}: {_PLAIN} of steps with different draft lengths hides what was verified, expected {_BY_LENGTH}"
        )
    return _checked({str(length): counts}, where)


def histogram_acceptance(found: list[Histogram], where: str) -> tuple[Positions, tuple[Assumption, ...]]:
    """Conditional acceptance by position of all steps together, and what is assumed.

    A step of draft length k tells of position j where j <= k and the j - 1 before were accepted. Positions that no step
    tells of end the block. Errors: InputError when none is told of.
    """
    most = max((length for rows in found for length in rows), default=0)
    tried, accepted = np.zeros((2, most), dtype=np.int64)
    lengths = set()
    for rows in found:
        for length, counts in rows.items():
            reached = np.cumsum(counts[::-1])[::-1]  # steps that accepted at least 0..length tokens
            tried[:length] += reached[:length]
            accepted[:length] += reached[1:]
            lengths |= {length} if length and reached[0] else set()
    known = int((tried > 0).sum())
    if not known:
        raise InputError(f"{where}: no step verified a draft token, expected some")
    conditional = tuple((accepted[:known] / tried[:known]).tolist())
    if len(lengths) < 2:
        return conditional, ()
    said = f"steps of draft lengths {min(lengths)} to {max(lengths)} are taken as trimmed whatever would be accepted"
    why = "where confidences trimmed them, deep positions look better than they are"
    return conditional, (Assumption("censoring", None, "", why, said),)
