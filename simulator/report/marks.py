"""What charts share: columns of their tables, and how a policy looks in all of them.

Colours are written as `@0`, `@1`, ...: the page puts those of its theme in, light or dark. A shape and a dash each say
the same without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
DASHES = ([1, 0], [6, 2], [2, 2], [8, 3, 2, 3], [4, 4], [10, 2], [1, 3], [6, 2, 2, 2])
COLOURS = len(SHAPES)


def column(field: str, title: str, form: str = "") -> dict[str, str]:
    """A column of a chart's table. form: a d3 number format, empty for text."""
    return {"field": field, "title": title, "format": form}


def quantitative(field: str, title: str, form: str = ",~r", *, zero: bool = False, **more: Any) -> Spec:
    """A numeric channel with its unit in the title."""
    scale = {"zero": zero, "nice": True, **more.pop("scale", {})}
    scale = {key: value for key, value in scale.items() if value is not None}
    axis = {"title": title, "format": form, **more.pop("axis", {})}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis, **more}


def colour(names: Sequence[str], shown: Sequence[str], field: str = "policy", *, legend: bool = True) -> Spec:
    """Colour of a name: the same in every chart. names: all of them; shown: those that this chart has."""
    marks = [f"@{names.index(name) % COLOURS}" for name in shown]
    return _nominal(field, shown, marks, legend=legend)


def shape(names: Sequence[str], shown: Sequence[str], field: str = "policy", *, legend: bool = True) -> Spec:
    """Shape of a name, see `colour`."""
    return _nominal(field, shown, [SHAPES[names.index(name) % COLOURS] for name in shown], legend=legend)


def dash(names: Sequence[str], shown: Sequence[str], field: str = "policy") -> Spec:
    """Dash of a name's line, see `colour`."""
    return _nominal(field, shown, [DASHES[names.index(name) % COLOURS] for name in shown], legend=True)


def tip(field: str, title: str, form: str = "") -> Spec:
    """A line of a mark's tooltip, and of what a screen reader says of it."""
    kind = {"type": "quantitative", "format": form} if form else {"type": "nominal"}
    return {"field": field, "title": title, **kind}


def rule_at(value: float, axis: str = "y") -> Spec:
    """A line across the chart."""
    mark = {"type": "rule", "color": "@text", "strokeWidth": 1, "opacity": 0.6, "aria": False}
    return {
        "data": {"values": [{"at": value}]},
        "mark": mark,
        "encoding": {axis: {"field": "at", "type": "quantitative"}},
    }


def named_axis(field: str, names: Sequence[str], **more: Any) -> Spec:
    """A row for every name, in their order, the names whole."""
    return {
        "field": field,
        "type": "nominal",
        "sort": list(names),
        "title": None,
        "axis": {"labelLimit": 170, "grid": False, "domain": False, "ticks": False},
        **more,
    }


def _nominal(field: str, shown: Sequence[str], marks: Sequence[Any], *, legend: bool) -> Spec:
    spec: Spec = {"field": field, "type": "nominal", "scale": {"domain": list(shown), "range": list(marks)}}
    return spec | ({"title": None} if legend else {"legend": None})
