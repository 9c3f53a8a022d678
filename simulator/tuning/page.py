"""From a search to the page of `dspark tune --report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_dspark.cost import provenance
from simulator.engine.run import Setting
from simulator.report.story import Entry, LoadRuns, Story
from simulator.reporting import made, sentence
from simulator.results.estimated import error_of_estimate
from simulator.results.stated import stated_assumptions
from simulator.results.whose import other_model
from simulator.tuning.finals import HELD_OUT, Held
from simulator.tuning.objective import Objective
from simulator.tuning.policy_file import server_command
from simulator.tuning.report import answer
from simulator.tuning.tune import Tuned


def story_of_search(tuned: Tuned, policy_file: Path, files: Sequence[str | Path | None]) -> Story:
    """The winner and the baselines on requests that the search never met, the trials, and what the choice hangs on."""
    first, finals = tuned.objectives[0], tuned.finals
    best, base = finals.recommended(first), finals.base(first)
    setting = tuned.unseen[0]
    policies = [each.candidate.policy for each in finals.held]
    trial, held_out = tuned.requests
    return Story(
        title="Which verification policy did the search find?",
        about=(
            f"{len(tuned.trials)} trials of {trial:,} requests of {setting.trace.source}; step costs of "
            f"{setting.cost.name}, drafter {setting.drafter.name} with blocks of {setting.drafter.gamma}"
        ),
        answer=sentence(answer(tuned)),
        sure=tuple(map(sentence, _sure(tuned, held_out))),
        words=(),
        judged=first.words,
        unit="requests in flight" if setting.concurrency is not None else "requests a second",
        loads=tuple(_load(tuned, number, each, base, best, first) for number, each in enumerate(tuned.unseen)),
        shown=0,
        warnings=tuple(map(sentence, (*error_of_estimate(setting), *other_model(setting, policies)))),
        assumptions=tuple(each.text for each in stated_assumptions(setting, policies)),
        made=_made(tuned, policy_file, files),
        robustness=None if tuned.robustness is None else _robustness(tuned),
        trials=_trials(tuned, first),
        extra={"no_sensitivity": "A search has none: the chart below asks the same of its winner."},
    )


def _made(tuned: Tuned, policy_file: Path, files: Sequence[str | Path | None]) -> dict[str, Any]:
    found = made(tuned.settings, files, len(tuned.finals.held[0].runs[0]))
    server = " ".join(server_command(tuned, policy_file).replace("\\\n", " ").split())
    return {**found, "inputs": {**found["inputs"], "serve it with": server}}


def _sure(tuned: Tuned, held_out: int) -> list[str]:
    finals = tuned.finals
    parts = f"{finals.windows} parts of them and their draws" if finals.windows > 1 else "their draws alone"
    said = [
        f"judged on {held_out:,} requests and {HELD_OUT} sets of draws that the search never met; the brackets are a "
        f"95 % interval over {parts}",
        f"step costs: {provenance(tuned.unseen[0].cost)}",
        "every policy here is lossless: what the server answers follows the target model's law exactly",
    ]
    if tuned.robustness is None:
        return [*said, "not held against wrong assumptions (--no-robustness)"]
    worst = tuned.robustness.worst
    said.append(
        f"if assumptions are wrong it loses up to {100 * worst.regret:.1f} % ({worst.what}, where {worst.best} leads)"
        if worst.regret > 0
        else "it leads under every wrong assumption that was tried"
    )
    if tuned.robustness.exact_only:
        said.append("ahead on the exact table only: with step costs off by up to 10 % a baseline overtakes it")
    return said


def _load(tuned: Tuned, number: int, setting: Setting, base: Held, best: Held, objective: Objective) -> LoadRuns:
    size = setting.concurrency or setting.request_rate
    return LoadRuns(
        load="the trace's own rate" if size is None else f"{size:g}",
        size=float(size or len(setting.trace)),
        entries=tuple(
            Entry(
                each.candidate.text,
                each.candidate.policy,
                each.candidate.setting(setting),
                each.runs[number],
                each.label,
            )
            for each in _once(tuned.finals.held)
        ),
        base=base.candidate.text,
        best=best.candidate.text,
        figure=objective.figure,
        more=objective.more,
        windows=tuned.finals.windows,
    )


def _once(held: Sequence[Held]) -> list[Held]:
    """A candidate that plays several parts stands once, under the first."""
    return list({each.candidate: each for each in reversed(held)}.values())[::-1]


def _robustness(tuned: Tuned) -> tuple[dict[str, Any], ...]:
    assert tuned.robustness is not None
    return tuple(
        {
            "what": change.what,
            "kind": change.kind,
            "regret": change.regret,
            "over_base": change.over_base,
            "best": change.best,
        }
        for change in tuned.robustness.changes
    )


def _trials(tuned: Tuned, objective: Objective) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = []
    for trial in tuned.trials:
        if trial.outcome.pruned:
            continue
        value = trial.outcome.mean(0)
        so_far = rows[-1]["best"] if rows else value
        best = value if objective.better(value, so_far) else so_far
        rows.append({"number": trial.number, "policy": trial.candidate.text, "value": value, "best": best})
    return tuple(rows)
