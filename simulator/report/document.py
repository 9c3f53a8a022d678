"""What the page holds: one JSON document with a version, of plain values."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sglang_dspark.policies import policy_to_string
from simulator.engine.run import Setting
from simulator.report.charts import charts
from simulator.report.counts import Counts
from simulator.report.explorer import explore
from simulator.report.story import LoadRuns, Story

FORMAT, VERSION = "sglang-dspark-page", 1

_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PACKAGES = ("sglang-dspark", "numpy", "scipy", "simpy", "msgspec", "optuna", "vl-convert-python")


def document(story: Story, counts: Mapping[tuple[int, str], Counts]) -> dict[str, Any]:
    """The whole page in plain values."""
    found = {
        "format": FORMAT,
        "version": VERSION,
        "title": story.title,
        "about": story.about,
        "answer": story.answer,
        "sure": list(story.sure),
        "words": list(story.words),
        "judged": story.judged,
        "unit": story.unit,
        "policies": story.names,
        "best": {load.load: load.best for load in story.loads},
        "charts": charts(story, counts),
        "explorer": _explorer(story, counts),
        "warnings": list(story.warnings),
        "assumptions": list(story.assumptions),
    }
    return {**_on_one_line(found), "made": {**story.made, "versions": versions()}}


def _on_one_line(value: Any) -> Any:
    """Names from outside may hold line breaks, which Vega's expressions do not read, and control characters."""
    if isinstance(value, str):
        return _BREAKS.sub(" ", value)
    if isinstance(value, dict):
        return {_on_one_line(key): _on_one_line(each) for key, each in value.items()}
    return [_on_one_line(each) for each in value] if isinstance(value, list | tuple) else value


def versions() -> dict[str, str]:
    """Of everything that a figure may depend on."""
    found = {"python": platform.python_version(), "machine": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _explorer(story: Story, counts: Mapping[tuple[int, str], Counts]) -> dict[str, Any]:
    """The explorer's cases, of the policies at the load that is shown first."""
    shown = story.loads[story.shown]
    policies = [(entry.name, entry.policy) for entry in shown.entries]
    policies = list({policy_to_string(policy): (name, policy) for name, policy in policies}.values())
    sizes = [(load.load, _batch(load, number, counts)) for number, load in enumerate(story.loads)]
    found = explore(_plain(shown), policies, sizes, story.shown)
    return {**found, "first": {"load": shown.load, "policy": _told(shown, policies)}}


def _plain(load: LoadRuns) -> Setting:
    """The load's setting, of an entry that changes nothing of it."""
    return next((each.setting for each in load.entries if each.name == load.base), load.entries[0].setting)


def _batch(load: LoadRuns, number: int, counts: Mapping[tuple[int, str], Counts]) -> int:
    """Requests that decode at once there, as counted; without a count, as the load says."""
    found = counts.get((number, load.best)) or next((each for key, each in counts.items() if key[0] == number), None)
    if found is None or not len(found.requests):
        return max(1, round(load.size))
    return max(1, round(float(found.requests.mean())))


def _told(load: LoadRuns, policies: Sequence[tuple[str, Any]]) -> str:
    """The policy that the explorer explains first: what to run, if it decides anything; else the first that does."""
    names = {name: policy for name, policy in policies}
    if load.best in names and names[load.best].adaptive:
        return load.best
    return next((name for name, policy in policies if policy.adaptive), policies[-1][0])
