"""What was verified and what became of it: budget, positions, reliability of the confidences."""

from __future__ import annotations

from simulator.report import rows as of
from simulator.report.charts.chart import Chart, chart, choice, panel, shown_load
from simulator.report.marks import colour, column, dash, quantitative, shape, tip
from simulator.report.rows import AllCounts, values
from simulator.report.story import Story


def budget(story: Story, counts: AllCounts) -> Chart:
    rows, names = of.budget_rows(story, counts), story.names
    shown = values(rows, "policy")
    x = quantitative(
        "requests",
        "requests that decode at once",
        "~r",
        scale={"type": "log", "base": 2, "nice": False, "padding": 12, "zero": None},
    )
    title = "tokens verified a request and step"
    band = {
        "mark": {"type": "area", "opacity": 0.15, "aria": False},
        "encoding": {
            "x": x,
            "y": quantitative("low", title, scale={"domainMin": 1}),
            "y2": {"field": "high"},
            "color": colour(names, shown),
        },
    }
    lines = {
        "mark": {"type": "line", "strokeWidth": 1.5, "aria": False},
        "encoding": {
            "x": x,
            "y": quantitative("verified", title, scale={"domainMin": 1}),
            "color": colour(names, shown),
            "strokeDash": dash(names, shown),
        },
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
        "encoding": {
            "x": x,
            "y": quantitative("verified", title, scale={"domainMin": 1}),
            "color": colour(names, shown),
            "shape": shape(names, shown),
            "tooltip": [
                tip("policy", "policy"),
                tip("requests", "requests", ",.1f"),
                tip("verified", "verified", ".2f"),
                tip("low", "10th percentile", ".2f"),
                tip("high", "90th percentile", ".2f"),
            ],
        },
    }
    caption = (
        "How much of a block is verified while more requests decode together (the paper's Figure 8). 1 is the anchor "
        "alone, no draft token. An adaptive policy comes down as the GPU fills. Shaded: the middle 80 % of the "
        "steps. Counted in one run of each policy."
    )
    columns = [
        column("policy", "policy"),
        column("requests", "requests at once", ",.1f"),
        column("verified", "verified a request", ".2f"),
        column("low", "10th percentile", ".2f"),
        column("high", "90th percentile", ".2f"),
        column("steps", "steps", ",d"),
    ]
    spec = {"height": 300, "layer": [band, lines, points]}
    note = "No policy of this report drafts."
    return chart("budget", "Verification budget by concurrency", caption, columns, rows, [panel(spec)], (), note)


def positions(story: Story, counts: AllCounts) -> Chart:
    rows = of.position_rows(story, counts)
    spec = {
        "height": 200,
        "transform": [{"fold": ["accepted", "wasted"], "as": ["outcome", "tokens"]}],
        "mark": {"type": "bar", "stroke": "@background", "strokeWidth": 1},
        "encoding": {
            "x": {"field": "position", "type": "ordinal", "title": "position in the block", "axis": {"labelAngle": 0}},
            "y": quantitative("tokens", "tokens of 100 blocks", zero=True, scale={"domain": [0, 100]}),
            "color": {
                "field": "outcome",
                "type": "nominal",
                "title": None,
                "scale": {"domain": ["accepted", "wasted"], "range": ["@0", "@1"]},
            },
            "order": {"field": "outcome"},
            "tooltip": [tip("position", "position"), tip("outcome", "outcome"), tip("tokens", "of 100 blocks", ".1f")],
        },
    }
    domains = values(rows, "domain")
    caption = (
        "Of 100 drafted blocks, how many draft tokens were verified at each position, and what became of them: "
        "accepted, or wasted (rejected, behind a rejected one, or beyond the end of the answer). The space above a "
        "bar was drafted and not verified."
    )
    columns = [
        column("load", story.unit),
        column("policy", "policy"),
        column("domain", "domain"),
        column("position", "position", "d"),
        column("accepted", "accepted", ".1f"),
        column("wasted", "wasted", ".1f"),
        column("blocks", "blocks", ",d"),
    ]
    best = story.loads[story.shown].best
    return chart(
        "positions",
        "Accepted and wasted tokens by position and domain",
        caption,
        columns,
        rows,
        [panel(spec, domain, domain=domain) for domain in domains],
        [choice(rows, "policy", "Policy", best), shown_load(story, rows)],
        "No policy of this report drafts.",
    )


def reliability(story: Story, counts: AllCounts) -> Chart:
    rows = of.reliability_rows(story, counts)
    domains = values(rows, "domain")
    place = {
        "x": quantitative("reported", "reported survival", ".0%", scale={"domain": [0, 1]}),
        "y": quantitative("observed", "observed survival", ".0%", scale={"domain": [0, 1]}),
    }
    diagonal = {
        "data": {"values": [{"at": 0}, {"at": 1}]},
        "mark": {"type": "line", "color": "@text", "opacity": 0.5, "strokeDash": [4, 4], "aria": False},
        "encoding": {"x": {"field": "at", "type": "quantitative"}, "y": {"field": "at", "type": "quantitative"}},
    }
    lines = {
        "mark": {"type": "line", "strokeWidth": 1.5, "aria": False},
        "encoding": {**place, "color": colour(domains, domains, "domain")},
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
        "encoding": {
            **place,
            "color": colour(domains, domains, "domain"),
            "shape": shape(domains, domains, "domain"),
            "tooltip": [
                tip("domain", "domain"),
                tip("reported", "reported", ".1%"),
                tip("observed", "observed", ".1%"),
                tip("share", "share of tokens", ".1%"),
            ],
        },
    }
    caption = (
        "Survival: the chance that a draft token and all before it are accepted. On the dashed line it comes true as "
        "reported; below it the draft is too sure of itself, and adaptive policies verify too much. ECE: expected "
        "calibration error over all drafted tokens, verified or not."
    )
    columns = [
        column("load", story.unit),
        column("domain", "domain"),
        column("reported", "reported", ".1%"),
        column("observed", "observed", ".1%"),
        column("share", "share of tokens", ".1%"),
        column("tokens", "tokens", ",d"),
        column("ece", "ECE", ".1%"),
    ]
    return chart(
        "reliability",
        "Can the confidences be believed?",
        caption,
        columns,
        rows,
        [panel({"height": 320, "layer": [diagonal, lines, points]})],
        [shown_load(story, rows)],
        "No policy of this report drafts.",
    )
