"""docs/validation.md and its figure, and the figures that every result on measured step costs quotes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap

import pictures

from .rows import KINDS, PREDICTED, Errors, Group, Row, Section, Tried, errors

COLOURS = {"by construction": "#999999", "fitted": "#56b4e9", "in-sample": "#e69f00", "predicted": "#009e73"}
MARKERS = {"by construction": ".", "fitted": "v", "in-sample": "s", "predicted": "o"}


def document(sections: Sequence[Section]) -> Iterator[str]:
    """The page, line by line."""
    yield "# Held against what others measured"
    yield ""
    yield "`python benchmarks/validate.py --write` writes this page, its figure and what every result on measured"
    yield "step costs quotes of it; `--check` runs a part in seconds and fails when an error has grown (CI does)."
    yield "The figures are others', with their sources in `benchmarks/validation/published`; nothing here was"
    yield "measured by us. Each row says what it is worth, the least first:"
    yield ""
    for kind, words in KINDS.items():
        yield f"- **{kind}**: {words}"
    yield ""
    yield "| against | worth | values | mean error | largest | with sign |"
    yield "|---|---|---:|---:|---:|---:|"
    for section in sections:
        for group in section.groups:
            for kind in group.kinds():
                found = errors([row for row in group.rows if row.kind == kind])
                yield f"| {group.name} | {kind} | {found.count} | {_cells(found)} |"
    yield ""
    yield "![Predicted against measured, the diagonal, and 5 per cent or 5 points around it](validation.svg)"
    for section in sections:
        yield ""
        yield from _section(section)


def _cells(found: Errors) -> str:
    digits = 2 if found.unit == "tokens" else 1
    return f"{found.mean:.{digits}f} {found.unit} | {found.largest:.{digits}f} | {found.bias:+.{digits}f}"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield ""
    yield from wrap(section.words, 110)
    for group in section.groups:
        yield ""
        yield f"**{group.name}**"
        yield ""
        yield from _summary(group) if group.short else _table(group.rows)
    for what, tried in (("Tried beside it", section.tried), ("One assumption at a time", section.varied)):
        if tried:
            yield ""
            yield f"**{what}**" + ("" if what.startswith("Tried") else " (mean error and largest; with sign)")
            yield ""
            yield from _tried(tried)
    if section.blame:
        yield ""
        yield "**Where it disagrees, and what is to blame**"
        yield ""
        for sentence in section.blame:
            yield from wrap(f"- {sentence}", 110, subsequent_indent="  ")


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | published | predicted | error | |"
    yield "|---|---:|---:|---:|---|"
    yield from (f"| {_cells_of(row)} |" for row in rows)


def _summary(group: Group) -> Iterator[str]:
    """By what the rows say before their last comma; every row is printed by --rows."""
    yield "| | values | mean error | largest | with sign | worst: published, predicted | |"
    yield "|---|---:|---:|---:|---:|---|---|"
    parts: dict[str, list[Row]] = {}
    for row in group.rows:
        name = row.what.rpartition(",")[0] if "threshold" not in row.what else row.what.split(",")[0]
        parts.setdefault(name, []).append(row)
    for name, rows in parts.items():
        found = errors(rows)
        worst = max(rows, key=lambda row: abs(row.error))
        said = f"{worst.what.removeprefix(name + ', ')}: {_value(worst, worst.published)}, "
        said += _value(worst, worst.predicted)
        yield f"| {name} | {found.count} | {_cells(found)} | {said} | {rows[0].kind} |"


def _tried(tried: Sequence[Tried]) -> Iterator[str]:
    yield "| setting | errors |"
    yield "|---|---|"
    for each in tried:
        words = f"**{each.words}** (kept)" if each.kept else each.words
        yield f"| {words} | {'; '.join(f'{found.text}; {_signed(found)}' for found in each.errors)} |"


def _signed(found: Errors) -> str:
    return f"{found.bias:+.{2 if found.unit == 'tokens' else 1}f}"


def _value(row: Row, value: float) -> str:
    if row.unit == "gain":
        return f"{100 * value:+.1f} %"
    if row.unit == "share":
        return f"{value:.3f}"
    return f"{value:.2f}" if row.unit == "tokens" else f"{value:,.0f}"


def _error(row: Row) -> str:
    return f"{row.error:+.2f} tokens" if row.unit == "tokens" else f"{row.error:+.1f} {row.error_unit}"


def line(group: Group, row: Row) -> str:
    """A row for the terminal."""
    return f"{group.name} | {_cells_of(row)}"


def _cells_of(row: Row) -> str:
    values = (_value(row, value) for value in (row.published, row.predicted))
    return " | ".join([row.what, *values, _error(row), row.kind])


def quoted(sections: Sequence[Section]) -> dict[str, dict[str, float]]:
    """What results quote: throughput of Figure 8, and gains that no parameter saw."""
    groups = {group.name: group for section in sections for group in section.groups}
    wanted = {
        "figure8": "Figure 8, DSpark-5 throughput a GPU",
        "frontier": "V4-Pro frontier, gains over k = 7, predicted loads",
        "captured": "SGLang #35413, gain over verifying everything",
        "production": "Gain in each user's speed at matched throughput",
    }
    found = {}
    for key, name in wanted.items():
        rows = groups[name].rows
        known = errors([row for row in rows if row.kind == PREDICTED] or rows)
        found[key] = {"count": known.count, "mean": round(known.mean, 1), "largest": round(known.largest, 1)}
    return found


def draw(sections: Sequence[Section], path: Path) -> None:
    """Throughput on the left, gains on the right; colour and marker say what a point is worth."""
    plt = pictures.pyplot()
    rows = [row for section in sections for group in section.groups for row in group.rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.4))
    for axes, unit, scale in ((left, "tok/s", 1.0), (right, "gain", 100.0)):
        for kind in KINDS:
            points = [(scale * r.published, scale * r.predicted) for r in rows if r.unit == unit and r.kind == kind]
            if points:
                across, up = zip(*points, strict=True)
                style = {"color": COLOURS[kind], "marker": MARKERS[kind], "linestyle": "none", "markersize": 4}
                axes.plot(across, up, label=f"{kind} ({len(points)})", **style)
        axes.legend(fontsize=8)
    ends = [100, 20_000]
    left.set_xscale("log")
    left.set_yscale("log")
    left.plot(ends, ends, color="black", linewidth=0.8)
    left.fill_between(ends, [0.95 * x for x in ends], [1.05 * x for x in ends], color="black", alpha=0.12, linewidth=0)
    left.minorticks_off()
    left.set_xlabel("measured tokens/s")
    left.set_ylabel("predicted tokens/s")
    left.set_title("throughput, +-5 %", fontsize=9)
    ends = [-65, 90]
    right.plot(ends, ends, color="black", linewidth=0.8)
    right.fill_between(ends, [x - 5 for x in ends], [x + 5 for x in ends], color="black", alpha=0.12, linewidth=0)
    right.set_xlabel("measured gain, %")
    right.set_ylabel("predicted gain, %")
    right.set_title("gains, +-5 points", fontsize=9)
    figure.tight_layout()
    pictures.save(figure, path)
    plt.close(figure)
