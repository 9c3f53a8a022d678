"""What a chart of the page is: a Vega-Lite specification a panel, its rows, its table and what to read in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulator.report.marks import Spec, column
from simulator.report.rows import Row, values
from simulator.report.story import Story

Chart = dict[str, Any]

GAIN = (column("gain", "gain", "+.1%"), column("low", "from", "+.1%"), column("high", "to (95 %)", "+.1%"))
ROW_STEP = 26


def chart(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[dict[str, str]],
    rows: Sequence[Row],
    panels: Sequence[Spec] = (),
    filters: Sequence[dict[str, Any]] = (),
    note: str = "",
) -> Chart:
    """panels: {title, where: fields that a row must have to be drawn in it, spec}. filters: what a reader chooses."""
    kept = [each for each in filters if len(each["values"]) > 1]
    single = {each["field"]: each["values"][0] for each in filters if len(each["values"]) == 1}
    return {
        "id": name,
        "title": title,
        "caption": caption,
        "columns": [each for each in columns if each["field"] not in single],
        "rows": list(rows),
        "panels": list(panels) if rows else [],
        "filters": kept,
        "note": note if not rows else "",
    }


def choice(rows: Sequence[Row], field: str, title: str, first: Any = None) -> dict[str, Any]:
    found = values(rows, field)
    return {
        "field": field,
        "title": title,
        "values": found,
        "first": first if first in found else (found[0] if found else None),
    }


def panel(spec: Spec, title: str = "", **where: Any) -> Spec:
    return {"title": title, "where": where, "spec": spec}


def shown_load(story: Story, rows: Sequence[Row]) -> dict[str, Any]:
    return choice(rows, "load", story.unit.capitalize(), story.loads[story.shown].load)
