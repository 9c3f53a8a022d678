"""Anyone's own acceptance: both forms and their round trip, every file that is taken, and what is refused of each."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from command_line import PROFILE, QUICK, assert_one_line_error, call
from hypothesis import given
from hypothesis import strategies as st
from simulated_worlds import finished, setting_of, trace_of

from sglang_dspark.calibration.quality import quality
from sglang_dspark.errors import InputError
from sglang_dspark.live.evaluate import Evaluation
from sglang_dspark.policies import make_policy
from simulator import Confidence, simulate
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance
from simulator.blocks.drafters import choose_drafter
from simulator.blocks.histogram import histogram_acceptance, histograms_of
from simulator.blocks.own import own_drafter
from simulator.blocks.survival import accept_length, checked_conditionals, conditionals, shifted_to_length, survivals
from simulator.inputs import Acceptance, Load

POSITIONS = st.lists(st.floats(0, 1), min_size=1, max_size=16)
BASE = ("--trace", "example", "--profile", PROFILE, *QUICK, "--policy", "fixed:k=1")


@given(POSITIONS)
def test_survivals_never_rise_and_lead_back_to_the_conditionals(values: list[float]) -> None:
    survival = survivals(values)
    assert list(survival) == sorted(survival, reverse=True) and all(0 <= each <= 1 for each in survival)
    back = conditionals(survival)
    assert all(0 <= each <= 1 for each in back)
    assert survivals(back) == pytest.approx(survival, abs=1e-300)
    reached = [1.0, *survival[:-1]]
    for value, found, here in zip(values, back, reached, strict=True):
        if here > 1e-290:  # behind a survival of 0 nothing is known
            assert found == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert checked_conditionals(list(survival), "prefix", "here") == back


@given(st.lists(st.floats(0.02, 0.98), min_size=1, max_size=16), st.floats(0.02, 0.98))
def test_a_shape_is_shifted_to_any_length(values: list[float], share: float) -> None:
    length = 1 + share * len(values)
    found = shifted_to_length(values, length)
    assert accept_length(found) == pytest.approx(length, rel=1e-9) and all(0 < each < 1 for each in found)
    assert np.argsort(found, kind="stable").tolist() == np.argsort(values, kind="stable").tolist()


def own(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_numbers_by_position_and_survivals() -> None:
    conditional = own_drafter("0.82,0.67,0.55")
    assert conditional.acceptance == {"all": (0.82, 0.67, 0.55)} and conditional.gamma == 3
    assert own_drafter([0.82, 0.67, 0.55]).acceptance == conditional.acceptance
    prefix = own_drafter("prefix: 0.82, 0.5494, 0.30217")
    assert prefix.acceptance["all"] == pytest.approx((0.82, 0.67, 0.55))
    assert own_drafter("0.9").gamma == 1
    by_domain = own_drafter({"math": [0.9, 0.8], "legal": [0.6, 0.5]})
    assert by_domain.domains == ("math", "legal") and by_domain.knows_domains
    assert conditional.has_confidence and "method" in {each.key for each in conditional.assumptions}


def test_a_file_by_domain(tmp_path: Path) -> None:
    content = {
        "version": 1,
        "kind": "prefix",
        "math": [0.9, 0.72],
        "chat": [0.7, 0.35],
        "model": "Mine-7B",
        "data": "tickets",
        "method": "mtp",
        "draft_scale": 0.05,
        "confidence_head": True,
    }
    drafter = own_drafter(own(tmp_path / "mine.json", content))
    assert drafter.acceptance == {"math": pytest.approx((0.9, 0.8)), "chat": pytest.approx((0.7, 0.5))}
    assert drafter.name == "mine" and drafter.origin.model == "Mine-7B" and "tickets" in drafter.origin.text
    assert drafter.method.name == "mtp" and drafter.cost_scale == 0.05 and drafter.has_confidence


def test_a_file_of_any_domains_serves_a_trace_that_names_them(tmp_path: Path) -> None:
    """Requests of a domain are accepted as the file says of it."""
    path = own(tmp_path / "mine.json", {"version": 1, "sure": [1.0, 1.0], "never": [0.0, 0.0]})
    trace = trace_of([(5, 40)] * 6)
    mixed = {
        domain: simulate(
            Load(trace, domain_mix={domain: 1.0}),
            PROFILE,
            ["fixed:k=2"],
            acceptance=Acceptance(own=path),
            replications=1,
            jobs=1,
        ).results[0]
        for domain in ("sure", "never")
    }
    assert mixed["sure"].figures["accept_length"] == pytest.approx(3, abs=0.2)
    assert mixed["never"].figures["accept_length"] == 1.0
    with pytest.raises(InputError, match="domain_mix=.*expected shares of sure, never"):
        simulate(Load(trace, domain_mix={"math": 1.0}), PROFILE, ["fixed:k=2"], acceptance=Acceptance(own=path))


def test_gamma_16_and_every_kind_of_policy_at_it() -> None:
    """Any gamma: published survivals of GLM-5.2 at 16 positions, met by the draws and held by every policy."""
    values = tuple(np.linspace(0.9, 0.6, 16).tolist())
    drafter = own_drafter(values)
    source = StatisticalAcceptance(drafter, Confidence(), np.zeros(300, dtype=np.int64), np.full(300, 200), 0)
    blocks = BlockTable.empty(300 * 200, 16, confidence=True)
    for request in range(300):
        source.fill(request, 1, blocks.rows(request * 200, (request + 1) * 200))
    assert (np.diff(blocks.units, axis=1) <= 0).all() and blocks.depth.max() == 16
    policies = (
        "fixed:k=16",
        "threshold:t=0.5",
        "early-stop",
        "hull",
        "lookahead",
        "argmax:lag=2",
        "argmax:lag=8",
        "schedule:upto=2,k=16/9",
        "goodput",
        "tetris",
        "guard",
        "oracle",
    )
    for text in policies:
        setting = setting_of(trace_of([(5, 60)] * 5), gamma=7)
        run, _ = finished(_with(setting, drafter), make_policy(text))
        assert run.recorder.completed == 5 and run.model.gamma == 16, text


def _with(setting: Any, drafter: Any) -> Any:
    return replace(setting, drafter=drafter)


def test_vllm_s_histograms_by_draft_length(tmp_path: Path) -> None:
    """Two responses by hand: 10 steps of 3 tokens and 4 of 1; position 1 is told of by all 14, position 3 by 4."""
    long = {"metrics": {"speculative_decoding": {"acceptance_histogram_by_draft_length": {"3": [2, 4, 1, 3]}}}}
    short = {"acceptance_histogram_by_draft_length": {"1": [1, 3], "0": [5]}}
    lines = own(tmp_path / "two.jsonl", json.dumps(long) + "\n" + json.dumps(short))
    drafter = own_drafter(lines)
    assert drafter.acceptance["all"] == pytest.approx((11 / 14, 4 / 8, 3 / 4))
    assert any("steps of draft lengths 1 to 3" in each.text for each in drafter.assumptions)
    one = own_drafter(own(tmp_path / "one.json", [long]))
    assert one.acceptance["all"] == pytest.approx((8 / 10, 4 / 8, 3 / 4))
    assert not any(each.key == "censoring" for each in one.assumptions)
    # vLLM's documented example: 43 steps of 3 tokens, as older servers give it.
    older = {
        "acceptance_histogram": [39, 1, 0, 3],
        "num_spec_steps": 43,
        "num_draft_tokens": 129,
        "num_spec_tokens": 3,
        "mean_acceptance_length": 1.2325581395348837,
    }
    found = own_drafter(own(tmp_path / "older.json", older))
    assert accept_length(found.acceptance["all"]) == pytest.approx(older["mean_acceptance_length"])
    with pytest.raises(InputError, match="different draft lengths hides"):
        own_drafter(own(tmp_path / "varied.json", {**older, "num_draft_tokens": 100}))


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60))
def test_histograms_are_read_as_the_steps_behind_them(steps: list[tuple[int, int]]) -> None:
    """Accepted tokens of every step, counted again position by position."""
    told = [(length, min(accepted, length)) for length, accepted in steps]
    rows: dict[str, list[int]] = {}
    for length, accepted in told:
        rows.setdefault(str(length), [0] * (length + 1))[accepted] += 1
    tried = [sum(k >= j and a >= j - 1 for k, a in told) for j in range(1, 9)]
    hits = [sum(a >= j for _, a in told) for j in range(1, 9)]
    found = list(histograms_of({"acceptance_histogram_by_draft_length": rows}, "here"))
    if not tried[0]:
        with pytest.raises(InputError, match="no step verified a draft token"):
            histogram_acceptance(found, "here")
        return
    conditional, _ = histogram_acceptance(found, "here")
    assert conditional == pytest.approx([hit / of for hit, of in zip(hits, tried, strict=True) if of])


def test_what_dspark_eval_wrote(tmp_path: Path) -> None:
    """As the command writes it: a position that no block reached is null."""

    def written(**depths: list[int]) -> Path:
        found = [
            Evaluation(name, 9, 90, 2.0, 1.0, quality(np.array(depth), None, 3) if depth else None)
            for name, depth in depths.items()
        ]
        return own(tmp_path / "eval.json", msgspec.json.encode([asdict(each) for each in found]).decode())

    drafter = own_drafter(written(code=[3, 3, 1, 0], chat=[2, 1, 0, 0]))
    assert drafter.acceptance == {
        "code": pytest.approx((3 / 4, 2 / 3, 1.0)),
        "chat": pytest.approx((2 / 4, 1 / 2, 0.0)),
    }
    cut = own_drafter(written(code=[3, 3, 1, 0], chat=[1, 1, 0, 0]))
    assert cut.gamma == 2 and any("beyond 2 are left out" in each.text for each in cut.assumptions)
    with pytest.raises(InputError, match="data set chat has no positions, expected those of dspark eval --records"):
        own_drafter(written(code=[3, 3, 1, 0], chat=[]))


def test_a_short_name_says_what_kind_of_drafter_it_is_of() -> None:
    eagle = choose_drafter("eagle3", "0.7,0.6")
    assert eagle.method.name == "eagle3" and not eagle.has_confidence and eagle.acceptance == {"all": (0.7, 0.6)}
    assert choose_drafter("mtp1", "0.9").cost_scale == 0.2
    assert choose_drafter(None, "0.9,0.8", 1).gamma == 1
    for name in ("dspark:qwen3-8b", "none"):
        with pytest.raises(InputError, match=f"drafter '{name}' does nothing with an acceptance given"):
            choose_drafter(name, "0.7,0.6")


REFUSED: dict[str, tuple[str, str]] = {
    "above 1": ("0.8,1.2", "position 2 is 1.2, expected a number in 0..1"),
    "negative": ("-0.1", "position 1 is -0.1, expected a number in 0..1"),
    "nan": ("0.5,nan", "position 2 is nan, expected a number in 0..1"),
    "rising": ("prefix:0.8,0.85", "survival rises from 0.8 to 0.85 at position 2"),
    "word": ("0.8,much", "'much' is no number, expected 0.82,0.67,0.55"),
    "empty": ("prefix:", "'' is no number"),
    "too many": (",".join(["0.9"] * 65), "65 positions are given, expected 1..64"),
    "no file": ("acceptance.json", "No such file or directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_numbers_are_one_sentence(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text, says = REFUSED[name]
    assert_one_line_error(call(capsys, *BASE, f"--acceptance={text}"), says)


FILES: dict[str, tuple[Any, str]] = {
    "no version": ({"math": [0.9]}, "is no acceptance, expected"),
    "other version": ({"version": 2, "math": [0.9]}, "version 2 is not known, expected 1"),
    "kind": ({"version": 1, "kind": "odds", "math": [0.9]}, "kind 'odds' is unknown, expected conditional or prefix"),
    "no domain": ({"version": 1}, "has no domain"),
    "no list": ({"version": 1, "math": 0.9}, "math is 0.9, expected a list"),
    "lengths": ({"version": 1, "math": [0.9], "code": [0.9, 0.8]}, "different numbers of positions (math 1, code 2)"),
    "rising": ({"version": 1, "kind": "prefix", "math": [0.5, 0.6]}, "file.json, math: survival rises"),
    "method": ({"version": 1, "method": "medusa", "math": [0.9]}, "method 'medusa' is unknown, expected one of dspark"),
    "scale": ({"version": 1, "draft_scale": -1, "math": [0.9]}, "draft_scale -1 is refused"),
    "head": ({"version": 1, "confidence_head": "yes", "math": [0.9]}, "confidence_head 'yes' is refused"),
    "counts": ({"acceptance_histogram_by_draft_length": {"2": [1, 2]}}, "expected a draft length k up to 64 and k + 1"),
    "no steps": ({"acceptance_histogram_by_draft_length": {}}, "no step verified a draft token"),
    "no json": ("acceptance: 0.9", "is no JSON"),
    "empty": ("", "is no acceptance"),
    "text": ('"0.9"', "is no acceptance"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    content, says = FILES[name]
    path = own(tmp_path / "file.json", content)
    assert_one_line_error(call(capsys, *BASE, "--acceptance", str(path)), says)


def test_flags_that_do_not_fit_the_acceptance(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    three = ("--acceptance", "0.8,0.7,0.6")
    for flags, says in (
        ((*three, "--gamma", "4"), "gamma=4 is refused for drafter 'own', expected 1..3: the acceptance given has 3"),
        ((*three, "--domains", "math=1"), "--domains does nothing here: drafter 'own' is the same in every domain"),
        ((*three, "--policy", "fixed:k=4"), "k=4 exceeds the draft block, expected 0..3"),
    ):
        assert_one_line_error(call(capsys, *BASE, *flags), says)
    path = own(tmp_path / "mine.json", {"version": 1, "method": "eagle3", "all": [0.8]})
    answer = call(capsys, *BASE, "--drafter", "dspark", "--acceptance", str(path))
    assert_one_line_error(answer, "is of method eagle3, and --drafter says dspark")


def test_the_report_says_that_the_acceptance_is_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, *BASE, "--acceptance", "prefix:0.7,0.4,0.2", "--json")
    stated = answer.report["setting"]
    assert stated["drafter"] == "own" and stated["gamma"] == 3
    assert stated["acceptance"]["source"] == "given by the user"
    assert stated["acceptance"]["accept_length"] == {"all": 2.3}
    assert not [each for each in answer.report["warnings"] if "acceptance" in each]
