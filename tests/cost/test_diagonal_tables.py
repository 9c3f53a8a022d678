"""A table measured with whole blocks knows its gamma, and prices whole blocks of that gamma alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import SpsCostTable, StepCost, load_profile, model_from_table
from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from sglang_dspark.serving.base.options import check_policy
from simulator.inputs import Acceptance, prepare

DIAG6 = {
    "sample_batch_tokens": [6, 12, 24, 48],
    "sample_steps_per_sec": [50.0, 48.0, 40.0, 30.0],
    "max_batch_tokens": 48,
}
"""DGX-Sparks issue 6: block 5, window 6."""
SHARED = Path(__file__).parents[3] / "shared/data/sps_profiles"


def table(probes: list[int], **meta: object) -> StepCost:
    rates = [100.0 - index for index in range(len(probes))]
    return model_from_table(SpsCostTable(probes, rates, probes[-1], dict(meta) or None), "t")


@given(gamma=st.integers(1, 15), batches=st.sets(st.integers(2, 64), min_size=1, max_size=8))
def test_gamma_is_found_where_a_batch_of_one_was_measured(gamma: int, batches: set[int]) -> None:
    model = table([(1 + gamma) * batch for batch in sorted({1, *batches})])
    assert model.diagonal and model.diagonal_gamma == gamma
    assert model.measured_requests == (1, max(batches))
    assert [gamma == g for g in range(1, 16)] == [model.holds_diagonal(g, g) for g in range(1, 16)]
    assert not model.holds_diagonal(gamma - 1, gamma) and not model.holds_diagonal(None, gamma)


def test_what_the_probes_imply_is_assumed_and_what_meta_says_is_not() -> None:
    [stated] = [one for one in table([12, 24, 48]).assumptions if one.key == "diagonal_gamma"]
    assert stated.value == 11 and "greatest common divisor" in stated.source
    given = table([12, 24, 48], gamma=5)
    assert given.diagonal_gamma == 5 and not [one for one in given.assumptions if one.key == "diagonal_gamma"]
    assert given.measured_requests == (2, 8)
    for wrong in (6, 0, "5"):
        with pytest.raises(InputError, match=r"meta.gamma=.* is refused, expected probes that are multiples of gamma"):
            table([12, 24, 48], gamma=wrong)


def test_a_gamma_that_cannot_be_told_is_said_and_any_whole_block_priced() -> None:
    model = table([1, 2, 4, 9])
    [stated] = [one for one in model.assumptions if one.key == "diagonal_gamma"]
    assert model.diagonal and model.diagonal_gamma is None and stated.value is None
    assert "not known" in stated.text and model.holds_diagonal(7, 7) and not model.holds_diagonal(6, 7)


def test_sglangs_manifest_beside_the_table_gives_gamma(tmp_path: Path) -> None:
    path = tmp_path / "sps.json"
    path.write_text(json.dumps({**DIAG6, "sample_batch_tokens": [12, 24, 48, 96], "max_batch_tokens": 96}))
    assert load_profile(str(path)).diagonal_gamma == 11
    manifest = tmp_path / "sps.json.manifest.json"
    manifest.write_text(json.dumps({"verify_num_draft_tokens": 6, "fracs": None}))
    assert load_profile(str(path)).diagonal_gamma == 5
    for text in ('{"verify_num_draft_tokens": "6"}', "{}", "no json"):
        manifest.write_text(text)
        with pytest.raises(InputError, match=r"sps.json.manifest.json"):
            load_profile(str(path))


@pytest.fixture
def diag6(tmp_path: Path) -> str:
    (tmp_path / "diag6.json").write_text(json.dumps(DIAG6))
    return str(tmp_path / "diag6.json")


@pytest.mark.parametrize(
    ("gamma", "policy"), [(None, "fixed:k=7"), (3, "fixed:k=3"), (7, "fixed:k=5"), (5, "fixed:k=4")]
)
def test_the_simulator_prices_one_gamma_and_names_it(diag6: str, gamma: int | None, policy: str) -> None:
    setting = prepare("example", diag6, acceptance=Acceptance(gamma=gamma))
    with pytest.raises(InputError) as refused:
        setting.check(make_policy(policy))
    sentence = str(refused.value)
    assert "with gamma 5 and cannot price" in sentence and f"'{policy}' with gamma {gamma or 7}" in sentence
    assert "give --gamma 5 --policy fixed:k=5, or --force-diagonal" in sentence


def test_its_own_gamma_runs_and_force_takes_all(diag6: str) -> None:
    prepare("example", diag6, acceptance=Acceptance(gamma=5)).check(make_policy("fixed:k=5"))
    forced = prepare("example", load_profile(diag6, force_diagonal=True), acceptance=Acceptance(gamma=3))
    forced.check(make_policy("fixed:k=2"))
    assert forced.cost.beyond_probes(9, 48) and not forced.cost.beyond_probes(8, 48), "eight whole blocks were measured"


def test_the_live_engine_refuses_the_profile_of_another_gamma(diag6: str) -> None:
    cost = load_profile(diag6)
    for policy in ("fixed:k=5", "fixed:k=3"):
        check_policy(make_policy(policy), "overlapped", cost, 5)
    with pytest.raises(InputError, match=r"with gamma 5 and cannot price the steps of a server that drafts 7: measure"):
        check_policy(make_policy("fixed:k=7"), "overlapped", cost, 7)
    with pytest.raises(InputError, match=r"with gamma 5 and cannot price the decisions of policy 'argmax': measure"):
        check_policy(make_policy("argmax:lag=2"), "overlapped", cost, 5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published tables are not here")
def test_published_tables() -> None:
    assert load_profile(str(SHARED / "gb10_tp2_inkling_small_nvfp4_block7_diag.json")).diagonal_gamma == 7
    assert load_profile(str(SHARED / "vllm_b300_dsv4flash0731_tp4_verify_only.json")).diagonal_gamma is None
    assert not load_profile(str(SHARED / "vllm_b300_dsv4flash0731_tp4_additive.json")).diagonal
