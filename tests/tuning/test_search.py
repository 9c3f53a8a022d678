"""The search: the same study whatever the workers and interruptions, refusals in a sentence, ties to the simpler."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="needs the extra `tune`")

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator import Load
from simulator.engine.run import Setting
from simulator.inputs import prepare
from simulator.traces import random_trace
from simulator.tuning import stored_study
from simulator.tuning.candidate import Candidate
from simulator.tuning.finals import TIE, Finals, Held, pick
from simulator.tuning.objective import Objective
from simulator.tuning.tune import Tuned, tune

PROFILE = "vllm-b300-dsv4-flash"
SHORT = random_trace(300, 60, 16, 0.5)
MORE = Objective("output_throughput", "steady_output_throughput", True)
LESS = Objective("mean_tpot_ms", "steady_mean_tpot_ms", False)


def setting(**load: Any) -> Setting:
    return prepare(
        Load(replace(SHORT, stamped=load.get("concurrency", 4) is None), **{"concurrency": 4, **load}), PROFILE
    )


def small(path: Path | None = None, settings: Sequence[Setting] = (), **more: Any) -> Tuned:
    given = {"trials": 25, "requests": 60, "workers": 1, "robust": False, "study": path, **more}
    return tune(settings or [setting()], **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuned]:
    path = tmp_path_factory.mktemp("study") / "whole.db"
    return path, small(path)


def rows(path: Path) -> list[Any]:
    with sqlite3.connect(path) as database:
        found = database.execute("select number, state from trials order by number").fetchall()
        values = database.execute("select trial_id, param_name, param_value from trial_params order by 1, 2").fetchall()
        attributes = database.execute("select trial_id, key, value_json from trial_user_attributes order by 1, 2")
        every = [found, values, attributes.fetchall()]
    database.close()
    return every


def test_two_workers_make_the_same_study(whole: tuple[Path, Tuned], tmp_path: Path) -> None:
    path, one = whole
    two = small(tmp_path / "two.db", workers=2)
    assert two.trials == one.trials and two.finals == one.finals
    assert rows(tmp_path / "two.db") == rows(path)


@pytest.mark.parametrize("kept", [0, 7, 20, 23])
def test_an_interrupted_study_goes_on_to_the_same_end(whole: tuple[Path, Tuned], tmp_path: Path, kept: int) -> None:
    """Cut off after any trial, in the middle of a generation too: the file holds trials in order."""
    path, one = whole
    cut = tmp_path / "cut.db"
    shutil.copy(path, cut)
    with sqlite3.connect(cut) as database:
        for table in ("trial_params", "trial_user_attributes", "trial_values", "trial_intermediate_values"):
            database.execute(f"delete from {table} where trial_id > {kept}")
        database.execute(f"delete from trials where trial_id > {kept}")
    database.close()
    again = small(cut)
    assert (again.trials, again.finals) == (one.trials, one.finals)
    assert rows(cut) == rows(path)


def test_a_longer_study_begins_like_a_shorter_one(whole: tuple[Path, Tuned], tmp_path: Path) -> None:
    path, one = whole
    longer = tmp_path / "longer.db"
    shutil.copy(path, longer)
    assert small(longer, trials=30).trials[:25] == one.trials


def test_every_search_meets_the_same_first_candidates(whole: tuple[Path, Tuned]) -> None:
    texts = [trial.candidate.text for trial in whole[1].trials]
    assert texts[:9] == ["none", *(f"fixed:k={k}" for k in range(1, 8)), "argmax:lag=2,pricing=floor"]
    assert {"hull", "argmax:lag=2", "threshold:t=0.5", "guard"} <= set(texts[:20])
    other = small(settings=[setting(concurrency=8)], trials=20)
    assert [trial.candidate.text for trial in other.trials[:17]] == texts[:17]


def test_bad_trials_stop_early_and_good_ones_do_not(whole: tuple[Path, Tuned]) -> None:
    trials = whole[1].trials
    assert not any(trial.outcome.pruned for trial in trials[:20])
    best = max(trials, key=lambda trial: trial.outcome.mean(0))
    assert not best.outcome.pruned
    for trial in trials[20:]:
        assert trial.outcome.pruned == (len(trial.outcome.values) < len(best.outcome.values))


def test_a_study_in_smaller_generations_keeps_them(whole: tuple[Path, Tuned], tmp_path: Path) -> None:
    """It begins with the same known candidates, is another search from then on, and goes on as what it is."""
    path = tmp_path / "tens.db"
    tens = small(path, generation=10)
    assert [trial.candidate for trial in tens.trials[:17]] == [trial.candidate for trial in whole[1].trials[:17]]
    assert small(path, generation=10, workers=2).trials == tens.trials
    with pytest.raises(InputError, match="is of another search .generation: 10, expected null"):
        small(path)


@given(st.lists(st.tuples(st.integers(0, 7), st.floats(0.5, 2.0)), min_size=1, max_size=12), st.booleans())
def test_ties_go_to_the_simpler(pairs: list[tuple[int, float]], more: bool) -> None:
    """Within 1 % of the best; never one that is further off, and never a longer one where a shorter one ties."""
    objective = MORE if more else LESS
    found = [(Candidate(make_policy(f"fixed:k={k}")), value) for k, value in dict(pairs).items()]
    found.append((Candidate(make_policy("hull")), 1.0))
    chosen = pick(found, objective)
    best = max(value for _, value in found) if more else min(value for _, value in found)
    tied = [candidate for candidate, value in found if objective.gain(value, best) >= -TIE]
    assert chosen in tied
    assert all(chosen.simplicity <= each.simplicity for each in tied)


def test_simple_means_fixed_before_adaptive_and_few_changes() -> None:
    texts = ["none", "fixed:k=1", "fixed:k=7", "argmax:lag=2", "argmax:lag=3", "hull", "hull:cap=3"]
    order = [Candidate(make_policy(text)) for text in texts]
    assert sorted(reversed(order), key=lambda each: each.simplicity) == order
    assert Candidate(make_policy("fixed:k=3"), gamma=5).simplicity > Candidate(make_policy("fixed:k=7")).simplicity


def test_several_loads_meet_the_same_candidates() -> None:
    tuned = small(settings=[setting(concurrency=2), setting(concurrency=4)], trials=20)
    assert len(tuned.finals.by_load) == 2
    assert all(len(segment) == 2 for trial in tuned.trials for segment in trial.outcome.values)


def test_several_objectives_give_a_frontier() -> None:
    tuned = small(objective=["output_throughput", "mean_tpot_ms"], trials=20)
    frontier = [[trial.outcome.mean(at) for at in (0, 1)] for trial in tuned.frontier]
    assert frontier and not any(trial.outcome.pruned for trial in tuned.trials)
    for throughput, tpot in frontier:
        assert not any(more > throughput and less < tpot for more, less in frontier)


def test_the_winner_is_judged_on_what_was_not_searched(whole: tuple[Path, Tuned]) -> None:
    tuned = whole[1]
    seen, unseen = tuned.settings[0], tuned.unseen[0]
    assert (len(seen.trace), len(unseen.trace)) == (60, 60) and seen.seed != unseen.seed
    assert unseen.trace.input_length.tolist() == SHORT.input_length[60:120].tolist()
    labels = [each.label for each in tuned.finals.held]
    assert labels == ["tuned", "no speculation", "best fixed k", "verify all", "SGLang's rule"]
    recommended = tuned.finals.recommended(tuned.objectives[0])
    assert recommended is (tuned.finals.held[0] if tuned.finals.better(tuned.objectives[0]) else recommended)
    assert tuned.finals.gap(tuned.objectives[0]).mean == pytest.approx(
        tuned.finals.held[0].value(MORE) / tuned.finals.base(MORE).value(MORE) - 1
    )


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "trials=0": ({}, {"trials": 0}),
    "workers=0": ({}, {"workers": 0}),
    "generation=0": ({}, {"generation": 0}),
    "are too few for 4 in flight, expected at least 26": ({}, {"requests": 20}),
    "has 300 requests, expected at least 1300": ({"concurrency": 100}, {"requests": 2000}),
    "figure 'speed' is unknown": ({}, {"objective": ["speed"]}),
    "is neither good nor bad": ({}, {"objective": ["mean_batch"]}),
    "names one figure twice": ({}, {"objective": ["mean_tpot_ms", "mean_tpot_ms"]}),
    "--objective goodput needs limits": ({}, {"objective": ["goodput"]}),
    "is what an open loop is offered": ({"concurrency": None}, {"objective": ["output_throughput"], "requests": 100}),
    "no request of 17 candidates keeps --goodput ttft:0.001": ({"goodput": {"ttft": 0.001}}, {"trials": 17}),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_makes_no_sense_is_one_sentence(says: str) -> None:
    load, more = REFUSED[says]
    with pytest.raises(InputError, match=says.replace("(", r"\(")):
        small(settings=[setting(**load)], **more)


def test_a_study_of_another_kind_is_refused(
    whole: tuple[Path, Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = whole
    with pytest.raises(InputError, match="is of another search .loads: .4., expected .8.."):
        small(path, settings=[setting(concurrency=8)])
    with pytest.raises(InputError, match="is of another search .seed"):
        small(path, settings=[replace(setting(), seed=3)])
    with pytest.raises(InputError, match="is of another search .generation: null, expected 10"):
        small(path, generation=10)
    text = tmp_path / "text.db"
    text.write_text("no database")
    with pytest.raises(InputError, match="is no SQLite file"):
        small(text)
    empty = tmp_path / "empty.db"
    database = sqlite3.connect(empty)
    database.execute("create table other (x int)")
    database.commit()
    database.close()
    with pytest.raises(InputError, match="holds no study of Optuna's"):
        small(empty)
    monkeypatch.setattr(stored_study, "VERSION", 2)
    with pytest.raises(InputError, match="is of version 1, expected 2: give another --study, or remove"):
        small(path)


def test_what_is_kept_is_the_simplest_of_the_best_baselines() -> None:
    """A rule that is ahead by a tenth of a percent does not replace a fixed length."""

    def held(label: str, text: str, value: float) -> Held:
        runs = tuple({"steady_output_throughput": value + noise} for noise in (-1.0, 0.0, 1.0))
        return Held(Candidate(make_policy(text)), label, (runs,))

    rows = [held("tuned", "hull", 1000.0), held("best fixed k", "fixed:k=5", 1000.5)]
    rows += [held("SGLang's rule", "argmax:lag=2,pricing=floor", 1001.0)]
    finals = Finals(rows[0].candidate, tuple(rows), 1, ())
    assert finals.base(MORE) is rows[2] and not finals.better(MORE)
    assert finals.recommended(MORE) is rows[1]
    better = Finals(rows[0].candidate, (held("tuned", "hull", 1100.0), *rows[1:]), 1, ())
    assert better.better(MORE) and better.recommended(MORE).label == "tuned"
