"""Pictures for the repository: text as text, the same bytes every time, no digits that nobody sees."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """Matplotlib, set up to draw such a picture."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "sglang-dspark", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Write a figure as .svg."""
    figure.savefig(path, metadata={"Date": None})
    path.write_text(compact(path.read_text()))


def compact(svg: str) -> str:
    """Without indentation, and numbers to a hundredth of a point."""
    return re.sub(r"(\d\.\d\d)\d+", r"\1", re.sub(r"\n\s*", "\n", svg))
