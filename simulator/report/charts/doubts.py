"""How far the answer can be trusted: sensitivity, robustness, and the search that found it."""

from __future__ import annotations

from simulator.report import rows as of
from simulator.report.charts.chart import GAIN, ROW_STEP, Chart, chart, panel
from simulator.report.marks import colour, column, named_axis, quantitative, rule_at, tip
from simulator.report.rows import values
from simulator.report.story import Story

WIDE = {"labelLimit": 220, "grid": False, "domain": False, "ticks": False}


def sensitivity(story: Story) -> Chart:
    rows = of.sensitivity_rows(story)
    pair = "" if story.sensitivity is None else f" {story.sensitivity.leader} over {story.sensitivity.runner_up}"
    caption = (
        f"Gain of the leader{pair} in {story.judged}, with one assumption varied at a time. Where the interval lies "
        "wholly below 0 the verdict flips: measure that before you trust the answer."
    )
    y = named_axis("what", [row["what"] for row in rows], axis=WIDE)
    flips = {"condition": {"test": {"field": "flips", "equal": True}, "value": "@1"}, "value": "@0"}
    said = [tip("what", "varied"), tip("gain", "gain", "+.1%"), tip("low", "from", "+.1%"), tip("high", "to", "+.1%")]
    spec = {
        "height": ROW_STEP * len(rows),
        "layer": [
            rule_at(0, "x"),
            {
                "mark": {"type": "rule", "strokeWidth": 2, "aria": False},
                "encoding": {
                    "y": y,
                    "x": quantitative("low", "gain", "+.0%", zero=True),
                    "x2": {"field": "high"},
                    "color": flips,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "y": y,
                    "x": quantitative("gain", "gain", "+.0%", zero=True),
                    "color": flips,
                    "shape": {
                        "condition": {"test": {"field": "flips", "equal": True}, "value": "diamond"},
                        "value": "circle",
                    },
                    "tooltip": said,
                },
            },
        ],
    }
    columns = [column("what", "varied"), *GAIN, column("flips", "flips the verdict")]
    note = story.extra.get("no_sensitivity", "")
    return chart("sensitivity", "What the answer hangs on", caption, columns, rows, [panel(spec)], (), note)


def robustness(story: Story) -> list[Chart]:
    if story.robustness is None:
        return []
    rows = list(story.robustness)
    kinds = values(rows, "kind")
    spec = {
        "height": 20 * len(rows),
        "mark": {"type": "bar", "height": 12},
        "encoding": {
            "y": named_axis("what", [row["what"] for row in rows], axis=WIDE),
            "x": quantitative("regret", "regret", ".2~%", zero=True),
            "color": colour(kinds, kinds, "kind"),
            "tooltip": [tip("what", "where"), tip("regret", "regret", ".2%"), tip("best", "who leads there")],
        },
    }
    caption = (
        "What the recommended policy loses where the world is not as assumed, against the best of all named here in "
        "that world (one set of draws): 0 means that it still leads. The costs change and what the policies believe "
        "does not."
    )
    columns = [
        column("what", "where"),
        column("kind", "kind"),
        column("regret", "regret", ".2%"),
        column("over_base", "gain over the best baseline", "+.2%"),
        column("best", "who leads there"),
    ]
    note = story.extra.get("no_robustness", "")
    return [chart("robustness", "If the assumptions are wrong", caption, columns, rows, [panel(spec)], (), note)]


def trials(story: Story) -> list[Chart]:
    if story.trials is None:
        return []
    rows = list(story.trials)
    x = quantitative("number", "trial", ",d")
    spec = {
        "height": 260,
        "layer": [
            {
                "mark": {"type": "line", "interpolate": "step-after", "color": "@text", "opacity": 0.6, "aria": False},
                "encoding": {"x": x, "y": quantitative("best", story.judged)},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 40, "color": "@0", "opacity": 0.8},
                "encoding": {
                    "x": x,
                    "y": quantitative("value", story.judged),
                    "tooltip": [
                        tip("number", "trial", "d"),
                        tip("policy", "candidate"),
                        tip("value", "value", ",.5~r"),
                    ],
                },
            },
        ],
    }
    caption = (
        "Every candidate that was simulated to the end, in the order of the search, and the best so far (line). The "
        "search is over when the line has long been flat. The winner was judged again on requests that no trial met."
    )
    columns = [column("number", "trial", "d"), column("policy", "candidate"), column("value", "value", ",.5~r")]
    return [chart("trials", "The search", caption, columns, rows, [panel(spec)])]
