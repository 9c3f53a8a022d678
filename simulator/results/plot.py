"""Pictures of comparisons and sweeps; needs matplotlib (extra `plot`), imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError
from simulator.results.paired import Paired

_ENDINGS = (".svg", ".png")
# Okabe and Ito's colours, which colour-blind readers can tell apart; a marker each says the same without colour.
STYLES = (
    ("#000000", "o"),
    ("#e69f00", "s"),
    ("#56b4e9", "^"),
    ("#009e73", "v"),
    ("#d55e00", "D"),
    ("#cc79a7", "P"),
    ("#0072b2", "X"),
)


def check_plot(path: Path) -> None:
    """Refuse (InputError) a picture that could not be drawn, before anything is simulated."""
    if path.suffix not in _ENDINGS:
        raise InputError(f"plot {path} is refused, expected a name that ends in {' or '.join(_ENDINGS)}")
    _pyplot()


def plot_gains(gains: dict[str, Paired], words: dict[str, str], path: str | Path | None = None) -> Any:
    """Gains by policy with their intervals. words: x and title."""
    if path is not None:
        check_plot(Path(path))
    figure, axes = _pyplot().subplots(figsize=(6.4, 0.5 * len(gains) + 1.4))
    for row, gap in enumerate(gains.values()):
        colour, _ = STYLES[row % len(STYLES)]
        error = None if math.isnan(gap.low) else [[100 * (gap.mean - gap.low)], [100 * (gap.high - gap.mean)]]
        axes.barh(row, 100 * gap.mean, xerr=error, color=colour, height=0.6, ecolor="grey", capsize=3)
    axes.set_yticks(range(len(gains)), list(gains), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(words["x"], fontsize=8)
    axes.set_title(words["title"], fontsize=8)
    return _finished(figure, path)


def plot_loads(
    loads: Sequence[float], lines: dict[str, list[tuple[float, float, float]]], words: dict[str, str], path: Path
) -> Any:
    """Gains [%] of each policy by load with their intervals. words: x, y and title."""
    figure, axes = _pyplot().subplots(figsize=(6.4, 4.0))
    for number, (policy, gains) in enumerate(lines.items()):
        colour, marker = STYLES[number % len(STYLES)]
        means, low, high = ([row[part] for row in gains] for part in range(3))
        axes.plot(loads, means, label=policy, color=colour, marker=marker, markersize=4, linewidth=1.2)
        if not any(map(math.isnan, low)):
            axes.fill_between(loads, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    if min(loads) > 0 and math.isfinite(max(loads)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(loads, [f"{load:g}" for load in loads], fontsize=8)
        axes.minorticks_off()
    axes.set_xlabel(words["x"])
    axes.set_ylabel(words["y"], fontsize=9)
    axes.set_title(words["title"], fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _finished(figure, path)


def plot_frontiers(lines: dict[str, tuple[Any, Any]], words: dict[str, str], path: Path) -> Any:
    """(x, y) of each line by load. words: x, y and title."""
    figure, axes = _pyplot().subplots(figsize=(6.4, 4.0))
    for number, (name, (across, up)) in enumerate(lines.items()):
        colour, marker = STYLES[number % len(STYLES)]
        axes.plot(across, up, label=name, color=colour, marker=marker, markersize=4, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(words["x"])
    axes.set_ylabel(words["y"], fontsize=9)
    axes.set_title(words["title"], fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _finished(figure, path)


def _finished(figure: Any, path: str | Path | None) -> Any:
    figure.tight_layout()
    if path is not None:
        try:
            figure.savefig(path, dpi=150, metadata={"Date": None} if str(path).endswith(".svg") else None)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
    return figure


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise InputError("a picture needs matplotlib, which is not installed: pip install matplotlib") from None
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "sglang-dspark"
    from matplotlib import pyplot

    return pyplot
