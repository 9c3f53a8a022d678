"""The charts of the page, in its order."""

from __future__ import annotations

from simulator.report.charts.chart import Chart
from simulator.report.charts.doubts import robustness, sensitivity, trials
from simulator.report.charts.performance import figures, frontier, gain, latency
from simulator.report.charts.verified import budget, positions, reliability
from simulator.report.rows import AllCounts
from simulator.report.story import Story


def charts(story: Story, counts: AllCounts) -> list[Chart]:
    """All of them. One that has nothing to show says why in `note`."""
    return [
        figures(story),
        frontier(story),
        gain(story),
        budget(story, counts),
        positions(story, counts),
        reliability(story, counts),
        latency(story),
        sensitivity(story),
        *robustness(story),
        *trials(story),
    ]
