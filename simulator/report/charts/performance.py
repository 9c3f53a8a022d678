"""What users and operators feel: throughput, speed, gain, latency."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.report import rows as of
from simulator.report.charts.chart import GAIN, ROW_STEP, Chart, chart, choice, panel, shown_load
from simulator.report.marks import Spec, colour, column, dash, named_axis, quantitative, rule_at, shape, tip
from simulator.report.rows import values
from simulator.report.story import Story


def figures(story: Story) -> Chart:
    rows = of.figure_rows(story)
    columns = [
        column("load", story.unit),
        column("policy", "policy"),
        column("part", "part"),
        column("tokens_s", "tokens/s", ",.0f"),
        *GAIN,
        column("tpot_ms", "TPOT, ms", ",.2f"),
        column("ttft_ms", "TTFT, ms", ",.0f"),
        column("accept_length", "accept length", ".2f"),
        column("wasted", "wasted", ".0%"),
    ]
    if rows and "within" in rows[0]:
        columns.append(column("within", "within limits", ".1%"))
    caption = (
        "tokens/s: output tokens of the server a second. Gain: over the best baseline (named in the column part) in "
        f"{story.judged}, with its 95 % interval; above 0 is better. TPOT, TTFT: mean time per output token and to "
        "the first one. Accept length: tokens that a verify step gives, the bonus token counted. Wasted: share of "
        "the verified tokens that gave none."
    )
    return chart("figures", "The policies side by side", caption, columns, rows, (), [shown_load(story, rows)])


def frontier(story: Story) -> Chart:
    rows, names = of.frontier_rows(story), story.names
    shown = values(rows, "policy")
    place = {
        "x": quantitative("speed", "tokens/s a user gets (1000 / TPOT in ms)"),
        "y": quantitative("tokens_s", "output tokens/s of the server", zero=False),
    }
    said = [
        tip("policy", "policy"),
        tip("load", "load"),
        tip("speed", "tokens/s a user", ",.1f"),
        tip("tokens_s", "tokens/s of the server", ",.0f"),
    ]
    front = {
        "transform": [{"filter": {"field": "front", "equal": True}}],
        "mark": {"type": "line", "color": "@text", "strokeWidth": 7, "opacity": 0.15, "aria": False},
        "encoding": {**place, "order": {"field": "speed"}},
    }
    lines = {
        "mark": {"type": "line", "strokeWidth": 1.5, "aria": False},
        "encoding": {
            **place,
            "color": colour(names, shown),
            "strokeDash": dash(names, shown),
            "order": {"field": "size"},
        },
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
        "encoding": {**place, "color": colour(names, shown), "shape": shape(names, shown), "tooltip": said},
    }
    caption = (
        "Each point is a policy at a load, each line a policy over the loads. Up: the server gives more tokens a "
        "second in all. Right: one user's answer comes faster. The broad grey band joins the points that no other "
        "beats in both: a policy worth having lies on it."
    )
    if len(story.loads) == 1:
        caption += " This report has one load; several (--concurrency 8,32,64) make lines."
    columns = [
        column("policy", "policy"),
        column("load", story.unit),
        column("speed", "tokens/s a user", ",.1f"),
        column("tokens_s", "tokens/s of the server", ",.0f"),
        column("front", "on the frontier"),
    ]
    spec = {"height": 320, "layer": [front, lines, points]}
    return chart("frontier", "Throughput against the speed of one user", caption, columns, rows, [panel(spec)])


def gain(story: Story) -> Chart:
    rows, names = of.gain_rows(story), story.names
    shown = values(rows, "policy")
    said = [
        tip("policy", "policy"),
        tip("load", "load"),
        tip("gain", "gain", "+.1%"),
        tip("low", "from", "+.1%"),
        tip("high", "to", "+.1%"),
    ]
    spec = _gain_of_one_load(names, shown, said) if len(story.loads) == 1 else _gain_by_load(story, names, shown, said)
    caption = (
        f"Gain in {story.judged} over what is chosen below; above 0 is better. The bars are 95 % intervals of the "
        "paired difference on the same draws: one that crosses 0 is no difference. Losses of more than 10 % stand at "
        "the edge, with their value."
    )
    columns = [column("over", "over"), column("load", story.unit), column("policy", "policy"), *GAIN]
    return chart("gain", "Gain by load", caption, columns, rows, [panel(spec)], [choice(rows, "over", "Gain over")])


def _gain_of_one_load(names: Sequence[str], shown: Sequence[str], said: list[Spec]) -> Spec:
    y = named_axis("policy", shown)
    x = quantitative("drawn_mean", "gain", "+.0%", zero=True, scale={"padding": 8})
    bars = {
        "mark": {"type": "rule", "strokeWidth": 2, "aria": False},
        "encoding": {
            "y": y,
            "x": quantitative("drawn_low", "gain", "+.0%", zero=True, scale={"padding": 8}),
            "x2": {"field": "drawn_high"},
            "color": colour(names, shown, legend=False),
        },
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
        "encoding": {
            "y": y,
            "x": x,
            "color": colour(names, shown, legend=False),
            "shape": shape(names, shown, legend=False),
            "tooltip": said,
            "description": {"field": "said", "type": "nominal"},  # the axis shows gains at the edge, not as they are
        },
    }
    return {
        "height": ROW_STEP * len(shown),
        "layer": [rule_at(0, "x"), bars, points, _beyond({"y": y, "x": x}, dx=8)],
    }


def _beyond(place: Spec, **more: int) -> Spec:
    """The value of a gain that is drawn at the edge."""
    mark = {"type": "text", "align": "left" if "dx" in more else "center", "fontSize": 10, "color": "@text", **more}
    text = {"field": "gain", "type": "quantitative", "format": "+.0%"}
    return {
        "transform": [{"filter": {"field": "beyond", "equal": True}}],
        "mark": {**mark, "aria": False},
        "encoding": {**place, "text": text},
    }


def _gain_by_load(story: Story, names: Sequence[str], shown: Sequence[str], said: list[Spec]) -> Spec:
    loads = [load.load for load in story.loads]
    place = {
        "x": {
            "field": "load",
            "type": "ordinal",
            "sort": loads,
            "title": story.unit,
            "axis": {"labelAngle": 0, "labelOverlap": True, "grid": False},
        },
        "xOffset": {"field": "policy", "type": "nominal", "sort": list(shown)},
    }
    y = quantitative("drawn_mean", "gain", "+.0%", zero=True, scale={"padding": 8})
    bars = {
        "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
        "encoding": {
            **place,
            "y": quantitative("drawn_low", "gain", "+.0%", zero=True, scale={"padding": 8}),
            "y2": {"field": "drawn_high"},
            "color": colour(names, shown),
        },
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
        "encoding": {
            **place,
            "y": y,
            "color": colour(names, shown),
            "shape": shape(names, shown),
            "tooltip": said,
            "description": {"field": "said", "type": "nominal"},  # the axis shows gains at the edge, not as they are
        },
    }
    return {
        "height": 320,
        "layer": [rule_at(0), bars, points, _beyond({**place, "y": y}, dy=-10)],
    }


def latency(story: Story) -> Chart:
    rows, names = of.latency_rows(story), story.names
    shown = values(rows, "policy")
    shares = ["median", "p90", "p95", "p99"]
    y = named_axis("policy", shown)
    spec = {
        "height": ROW_STEP * len(shown),
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5, "aria": False},
                "encoding": {
                    "y": y,
                    "x": quantitative("median", "milliseconds", zero=True),
                    "x2": {"field": "p99"},
                    "color": colour(names, shown, legend=False),
                },
            },
            {
                "transform": [{"fold": shares, "as": ["percentile", "ms"]}],
                "mark": {"type": "point", "size": 50, "opacity": 1, "strokeWidth": 1.8},
                "encoding": {
                    "y": y,
                    "x": quantitative("ms", "milliseconds", zero=True),
                    "color": colour(names, shown, legend=False),
                    "shape": {
                        "field": "percentile",
                        "type": "nominal",
                        "scale": {"domain": shares, "range": ["circle", "stroke", "triangle-up", "diamond"]},
                        "legend": None,  # the caption says it: it would be wider than the plot beside long names
                    },
                    "tooltip": [tip("policy", "policy"), tip("percentile", "percentile"), tip("ms", "ms", ",.2f")],
                },
            },
        ],
    }
    caption = (
        "Circle: the median, half of the requests are faster. Dash: 90 %, triangle: 95 %, diamond: 99 % are faster. "
        "Further left is better. Means over the sets of draws."
    )
    columns = [
        column("load", story.unit),
        column("what", "latency"),
        column("policy", "policy"),
        *(column(share, f"{share}, ms", ",.2f") for share in shares),
    ]
    panels = [panel(spec, what, what=what) for what in of.LATENCIES.values()]
    return chart("latency", "Latency percentiles", caption, columns, rows, panels, [shown_load(story, rows)])
