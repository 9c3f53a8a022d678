"""Reliability diagrams as text, one small panel a position; rich writes the same panels to an SVG file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from sglang_dspark.calibration.fit import Calibration
from sglang_dspark.calibration.metrics import Reliability
from sglang_dspark.errors import InputError

_WIDTH, _HEIGHT = 31, 15
_LEAST_SHARE = 0.002  # bins with fewer blocks than that say nothing


def diagrams(result: Calibration) -> Group:
    """Observed survival (upwards) against predicted survival, every position."""
    panels = [
        Panel.fit(_diagram(before, after if result.improved else None), title=f"position {position}")
        for position, (before, after) in enumerate(
            zip(result.reliability_before, result.reliability_after, strict=True), start=1
        )
    ]
    key = "survival: observed (up) against predicted (right); o before" + (", x after" if result.improved else "")
    return Group(Text(f"{key}, # both, . where they would be equal; held-out blocks"), Columns(panels))


def write_svg(path: Path, result: Calibration) -> None:
    """The diagrams as an SVG file (InputError if it cannot be written)."""
    console = Console(record=True, file=io.StringIO(), width=150)
    console.print(diagrams(result))
    svg = console.export_svg(title="Reliability of survivals")
    try:
        path.write_text(svg)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _diagram(before: Reliability, after: Reliability | None) -> Text:
    cells = np.full((_HEIGHT, _WIDTH), " ", dtype="<U1")
    for column in range(_WIDTH):
        cells[_row(column / (_WIDTH - 1)), column] = "."
    for mark, bins in [("o", before), ("x", after)]:
        if bins is None:
            continue
        shown = bins.weight > _LEAST_SHARE * bins.weight.sum()
        for predicted, observed in zip(bins.predicted[shown], bins.observed[shown], strict=True):
            where = _row(observed), round(float(predicted) * (_WIDTH - 1))
            cells[where] = "#" if mark == "x" and cells[where] == "o" else mark
    text = Text("\n".join("".join(row) for row in cells))
    text.highlight_regex(r"o+", "yellow")
    text.highlight_regex(r"[x#]+", "green")
    return text


def _row(height: float) -> int:
    return _HEIGHT - 1 - round(float(height) * (_HEIGHT - 1))
