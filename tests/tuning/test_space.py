"""What is searched: derived from what policies declare, restricted by a file, and the same candidate both ways."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES
from simulator import Acceptance, Engine, EngineSettings, Load
from simulator.inputs import prepare
from simulator.traces import example_trace
from simulator.tuning.space import Between, Choice, Space, default_space
from simulator.tuning.space_file import read_space

PROFILE = "vllm-b300-dsv4-flash"
SETTING = prepare(Load(example_trace(), concurrency=16), PROFILE)
SPACE = default_space(SETTING, 16)


class Drawn:
    """A trial that takes what hypothesis draws, and checks that it lies in the range."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.params = data, dict[str, Any]()

    def suggest_categorical(self, name: str, values: list[Any]) -> Any:
        return self._keep(name, self.data.draw(st.sampled_from(values), name))

    def suggest_int(self, name: str, low: int, high: int, log: bool = False) -> int:
        assert not log or low >= 1
        return int(self._keep(name, self.data.draw(st.integers(low, high), name)))

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return float(self._keep(name, self.data.draw(st.floats(low, high), name)))

    def _keep(self, name: str, value: Any) -> Any:
        assert self.params.setdefault(name, value) == value
        return value


@given(st.data())
def test_every_point_is_a_lossless_policy_that_runs_here(data: st.DataObject) -> None:
    candidate = SPACE.draw(Drawn(data))
    assert candidate.policy.lossless
    candidate.setting(SETTING).check(candidate.policy)
    params = SPACE.params(candidate)
    assert params is not None, "what was drawn is in the space"

    class Again(Drawn):
        def _keep(self, name: str, value: Any) -> Any:
            return params[name]

    assert SPACE.draw(Again(data)) == candidate


def test_all_lossless_policies_and_all_their_parameters_are_there() -> None:
    lossless = {name for name, each in POLICIES.items() if each().lossless}
    assert set(SPACE.policies) == lossless - {"repriced"}, "on true step costs it is the rule inside it"
    for name, ranges in SPACE.policies.items():
        fields = {field.name for field in dataclasses.fields(POLICIES[name])}
        searched = {key.partition("[")[0] for key in ranges}
        assert fields - searched <= {"upto"}, "a schedule's batch sizes stay, its lengths are searched"
    assert SPACE.policies["fixed"]["k"] == Between(1, 7, True)
    assert SPACE.running == Choice(("own", 8, 12)) and SPACE.gamma == Between(4, 7, True)


def test_what_cannot_run_is_left_out_and_said() -> None:
    overlapped = Engine(PROFILE, settings=EngineSettings(schedule="overlapped"))
    space = default_space(prepare(Load(example_trace(), concurrency=16), overlapped), 16)
    assert "hull" not in space.policies and any(line.startswith("hull is left out: ") for line in space.left_out)
    none = default_space(prepare(Load(example_trace()), PROFILE, Acceptance("none")), 16)
    assert set(none.policies) == {"none"} and none.gamma is None


def test_seeds_begin_with_the_baselines() -> None:
    texts = [each.text for each in SPACE.seeds()]
    assert texts[:9] == ["none", *(f"fixed:k={k}" for k in range(1, 8)), "argmax:lag=2,pricing=floor"]
    assert len(set(texts)) == len(texts)


def space_of(tmp_path: Path, text: str) -> Space:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path, SETTING, 16)


def test_a_file_restricts_the_space(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="needs the extra `tune`")
    space = space_of(
        tmp_path,
        "policies:\n  fixed: {k: {low: 2, high: 5}}\n  hull: {fill: [true]}\n  argmax: {lag: 2}\ngamma: [5, 7]\n"
        "max_running_requests: [own, 48]\n".replace("own, ", ""),
    )
    assert set(space.policies) == {"fixed", "hull", "argmax"}
    assert space.policies["fixed"] == {"k": Between(2, 5, True)}
    assert space.policies["hull"]["fill"] == Choice((True,)) and "cap" in space.policies["hull"]
    assert space.policies["argmax"]["lag"] == Choice((2,))
    assert (space.gamma, space.running) == (Choice((5, 7)), Choice((48,)))
    assert set(space_of(tmp_path, "policies: [none, fixed]\n").policies) == {"none", "fixed"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("policies: {fixed: {k: {low: 1, high: 99}}}", "fixed.k = 1..99 is refused, expected a range within 0..7"),
        ("policies: {fixed: {k: {low: 5, high: 2}}}", "fixed.k = 5..2 is refused"),
        ("policies: {fixed: {k: 8}}", "fixed.k = 8 is refused, expected 0..7"),
        ("policies: {fixed: {k: 2.5}}", "fixed.k = 2.5 is refused"),
        ("policies: {hull: {fill: maybe}}", "hull.fill = maybe is refused, expected one of true, false"),
        ("policies: {fixed: {depth: 3}}", "policy 'fixed' has no parameter 'depth' to search, expected one of: k"),
        ("policies: {oracle: {}}", "policy 'oracle' is refused, expected one of "),
        ("policies: []", "policies is refused, expected a list of names"),
        ("gamma: 9", "gamma = 9 is refused, expected 1..7"),
        ("max_running_requests: 0", "max_running_requests = 0 is refused, expected 1..65536"),
        ("colour: blue", "expected a mapping with policies, gamma, max_running_requests"),
        ("policies: {a: [", "is no YAML"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    pytest.importorskip("yaml", reason="needs the extra `tune`")
    with pytest.raises(InputError) as error:
        space_of(tmp_path, text)
    message = str(error.value)
    assert "\n" not in message and "space.yaml" in message
    assert says.replace("one of: k", "one of k") in message
