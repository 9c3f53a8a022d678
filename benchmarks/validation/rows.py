"""One prediction beside what was published, and what a source's section of the page holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

FITTED = "fitted"
CONSTRUCTION = "by construction"
IN_SAMPLE = "in-sample"
PREDICTED = "predicted"
KINDS = {
    CONSTRUCTION: "the figure went into the model and comes out again",
    FITTED: "parameters were chosen so that these very figures come out",
    IN_SAMPLE: "parameters were fitted to other arms of the same loads, or to this figure as a whole",
    PREDICTED: "no parameter saw it",
}
"""How much a row says, the least first."""


@dataclass(frozen=True)
class Row:
    """published, predicted: in `unit`. A share or a gain is a fraction, off in points; tok/s and ms are off in per
    cent; tokens in tokens. weight: how much the row counts in a mean.
    """

    what: str
    published: float
    predicted: float
    unit: str
    kind: str
    weight: float = 1.0

    @property
    def error(self) -> float:
        """In points, per cent or tokens."""
        if self.unit in ("gain", "share"):
            return 100 * (self.predicted - self.published)
        if self.unit == "tokens":
            return self.predicted - self.published
        return 100 * (self.predicted / self.published - 1)

    @property
    def error_unit(self) -> str:
        return {"gain": "points", "share": "points", "tokens": "tokens"}.get(self.unit, "%")


@dataclass(frozen=True)
class Errors:
    """Mean size, largest size and mean with sign of the errors of some rows, in their unit."""

    count: int
    mean: float
    largest: float
    bias: float
    unit: str

    @property
    def text(self) -> str:
        digits = 2 if self.unit == "tokens" else 1
        return f"{self.mean:.{digits}f} {self.unit} (at most {self.largest:.{digits}f})"


def errors(rows: Sequence[Row]) -> Errors:
    """Of rows of one unit."""
    (unit,) = {row.error_unit for row in rows}
    found, weights = np.array([row.error for row in rows]), np.array([row.weight for row in rows])
    mean = float(np.average(np.abs(found), weights=weights))
    return Errors(
        len(rows), mean, float(np.abs(found[weights > 0]).max()), float(np.average(found, weights=weights)), unit
    )


@dataclass(frozen=True)
class Tried:
    """One setting: the errors that it gives. kept: it is the one whose rows stand in the table."""

    words: str
    errors: tuple[Errors, ...]
    kept: bool = False


@dataclass(frozen=True)
class Group:
    """Rows of one table. short: it is summarised on the page (the command prints every row with --rows). checked: its
    rows are kept for `validate.py --check`.
    """

    name: str
    rows: tuple[Row, ...]
    short: bool = False
    checked: bool = True

    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if any(row.kind == kind for row in self.rows)]


@dataclass(frozen=True)
class Section:
    """A source. words: what was set up, and from what. tried: settings beside the one that was kept. varied: one
    assumption at a time. blame: in words, what the errors hang on.
    """

    key: str
    title: str
    words: str
    groups: tuple[Group, ...]
    tried: tuple[Tried, ...] = ()
    varied: tuple[Tried, ...] = ()
    measured: str = ""
    blame: tuple[str, ...] = field(default=())
