"""Small comparisons and their pages, made once a test session."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from sglang_dspark.policies import make_policy
from simulator.engine.run import Setting
from simulator.inputs import Load, prepare, read_load
from simulator.report.counts import Counts
from simulator.report.document import document
from simulator.report.story import Story, count_runs
from simulator.reporting import story_of_comparison, story_of_sweep
from simulator.results.comparison import Comparison
from simulator.results.paired import Paired
from simulator.results.varied import Sensitivity, Varied
from simulator.simulate import compare_policies
from simulator.sweep import sweep
from simulator.traces import Trace, first_requests

PROFILE = "vllm-b300-dsv4-flash"
POLICIES = ("none", "fixed:k=7", "hull", "argmax:lag=2", "threshold:t=0.5")
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\u2028{{data}}"


@cache
def requests() -> Trace:
    found = read_load("example", 0, None)
    assert isinstance(found, Trace)
    return first_requests(found, 120)


@cache
def setting(concurrency: int = 4) -> Setting:
    return prepare(Load(requests(), concurrency=concurrency), PROFILE)


@cache
def comparison() -> Comparison:
    policies = [make_policy(text) for text in POLICIES]
    found = compare_policies(setting(), policies, replications=2, jobs=1)
    gain = Paired(-0.01, -0.02, -0.005)
    varied = Sensitivity("hull", "fixed:k=7", found.judged.figure, Paired(0.02, 0.01, 0.03), (Varied("x", gain, True),))
    return replace(found, sensitivity=varied)


@cache
def story() -> Story:
    return story_of_comparison(setting(), comparison(), ())


@cache
def counted() -> dict[tuple[int, str], Counts]:
    return count_runs(story(), jobs=1)


@cache
def one_load() -> dict[str, Any]:
    return document(story(), counted())


@cache
def several_loads() -> dict[str, Any]:
    settings = [setting(2), setting(4)]
    found = sweep(settings, [make_policy("hull")], replications=2, jobs=1)
    told = story_of_sweep(settings, found, ())
    return document(told, count_runs(told, jobs=1))


@cache
def hostile() -> dict[str, Any]:
    """Every string of the story that may come from outside is an attack: trace, policies, warnings, command."""
    told = story()
    names = {name: f"{HOSTILE}{name}" for name in told.names}
    loads = tuple(
        replace(
            load,
            load=HOSTILE,
            base=load.base and names[load.base],
            best=names[load.best],
            entries=tuple(replace(entry, name=names[entry.name], label=HOSTILE) for entry in load.entries),
        )
        for load in told.loads
    )
    made = {"command": f"simulate --trace {HOSTILE}", "inputs": {HOSTILE: HOSTILE}}
    texts = dict.fromkeys(("title", "about", "answer", "judged", "unit"), HOSTILE)
    lists = dict.fromkeys(("sure", "words", "warnings", "assumptions"), (HOSTILE,))
    counts = {(number, names[name]): each for (number, name), each in counted().items()}
    return document(replace(told, loads=loads, made=made, **texts, **lists), counts)
