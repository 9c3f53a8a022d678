"""Recorded loads are told apart, measured, and predicted from other loads."""

import json
import subprocess
import sys

import numpy as np
import pytest
from synthetic_load import GAMMA, Load

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from sglang_dspark.records import RecordSet, RequestRecord
from sglang_dspark.records.blocks import uncensored_blocks
from sglang_dspark.records.episodes import closed_loop, find_episodes
from simulator.blocks.acceptance import BlockTable
from simulator.blocks.recorded import RecordedAcceptance
from simulator.engine.recorded_load import recorded_trace
from simulator.results.prediction import predict
from simulator.traces import trace_facts


@pytest.fixture(scope="module")
def loads(tmp_path_factory):
    """argmax with exploration at three loads, in one folder; and another policy at the middle one."""
    root = tmp_path_factory.mktemp("loads")
    load = Load(root / "argmax", explore=0.1)
    load.closed(2).closed(6).closed(12, requests=60).close()
    Load(root / "full", "fixed:k=4", seed=3).closed(6).close()
    return root


def test_loads_are_told_apart(loads):
    episodes = find_episodes(RecordSet(loads / "argmax"))
    assert [episode.concurrency for episode in episodes] == [2, 2, 2, 6, 6, 6, 12, 12, 12]
    assert {text for episode in episodes for text in episode.policies} == {"argmax:lag=2"}


def test_an_open_loop_is_not_a_closed_one(tmp_path):
    load = Load(tmp_path)
    load.open(rate=20.0).close()
    [episode] = find_episodes(RecordSet(tmp_path))
    assert episode.concurrency is None
    tokens = sum(request.output_length for request in episode.requests)
    span = max(r.finish_time_s for r in episode.requests) - episode.requests[0].arrival_time_s
    assert episode.figures()["output_throughput"] == pytest.approx(tokens / span)


def test_measured_figures_on_a_worked_case():
    requests = [
        RequestRecord(
            rid=str(i),
            arrival_time_s=0.0,
            first_token_time_s=1.0,
            finish_time_s=3.0 + i,
            input_length=5,
            output_length=5,
        )
        for i in range(4)
    ]
    assert closed_loop(requests) == 4
    from sglang_dspark.records import Header
    from sglang_dspark.records.episodes import Episode

    figures = Episode(Header(gamma=4), requests, concurrency=None).figures()
    assert figures["mean_ttft_ms"] == 1000.0
    assert figures["mean_tpot_ms"] == pytest.approx(np.mean([500, 750, 1000, 1250]))
    assert figures["output_throughput"] == pytest.approx(20 / 6) and "steady_output_throughput" not in figures


def test_steady_throughput_of_a_worked_case():
    """Two in flight, each 2 s long and one second apart; tokens come at 1 s, then one a second of each."""
    requests = [
        RequestRecord(
            rid=str(i),
            arrival_time_s=begin,
            first_token_time_s=begin + 1,
            finish_time_s=begin + 2,
            input_length=5,
            output_length=2,
        )
        for i in range(8)
        for begin in [float(i // 2 * 2)]
    ]
    from sglang_dspark.records import Header
    from sglang_dspark.records.episodes import Episode

    episode = Episode(Header(gamma=4), requests, concurrency=2)
    episode.emitted = [(2.0 + 2 * i, 2) for i in range(4)]
    # The window is [1, 8]: from the first tokens of the first two on, until the last two are done.
    first, later = 4 * 2, 4 * 2
    assert episode.figures()["steady_output_throughput"] == pytest.approx((first + later) / 7)


def test_the_middle_load_is_predicted_from_low_and_high(loads):
    records = RecordSet(loads / "argmax")
    result = predict(records, records, concurrency=6, complete=True)
    for name, bound in [("steady_output_throughput", 0.05), ("mean_tpot_ms", 0.05), ("accept_length", 0.03)]:
        assert abs(result.figures[name].error) < bound, (name, result.figures[name])
    assert result.repetitions == 3 and result.fitted.error < 0.02
    low = predict(records, records, concurrency=2, complete=True).figures["steady_output_throughput"]
    assert low.measured < 0.7 * result.figures["steady_output_throughput"].measured and abs(low.error) < 0.08


def test_costs_come_from_other_loads_only(loads, tmp_path):
    """A machine twice as fast in the compared load is not known to the fit."""
    fast = Load(tmp_path, explore=0.1, slowdown=0.5, seed=9)
    fast.closed(6).close()
    result = predict(RecordSet(tmp_path), RecordSet(loads / "argmax"), complete=True)
    assert result.figures["steady_output_throughput"].error == pytest.approx(-0.5, abs=0.06)
    with pytest.raises(InputError, match="no decode step outside"):
        predict(RecordSet(tmp_path), RecordSet(tmp_path))


def test_a_policy_switch_is_predicted_before_it_is_made(loads):
    """From records of argmax: what would fixed:k=4 do at the same load?"""
    records = RecordSet(loads / "argmax")
    told = predict(records, records, concurrency=6, policy=make_policy("fixed:k=4"), complete=True)
    made = find_episodes(RecordSet(loads / "full"))
    assert told.policy == "fixed:k=4"
    for name, bound in (("steady_output_throughput", 0.08), ("accept_length", 0.06)):
        measured = np.median([episode.figures()[name] for episode in made])
        assert told.figures[name].predicted == pytest.approx(measured, rel=bound), name


def test_unlike_loads_and_censored_records_are_refused(loads, tmp_path):
    records = RecordSet(loads / "argmax")
    with pytest.raises(InputError, match="concurrency 2, 6, 12"):
        predict(records, records)
    with pytest.raises(InputError, match="no load of at least 4 requests"):
        predict(records, records, concurrency=7)
    Load(tmp_path, "fixed:k=1").closed(3).close()
    with pytest.raises(InputError, match="the policy trimmed them"):
        predict(RecordSet(tmp_path), records)


def test_recorded_anchors_give_their_own_block(loads):
    records = RecordSet(loads / "full")
    blocks = uncensored_blocks(records)
    requests = find_episodes(records)[0].requests
    source = RecordedAcceptance(blocks, requests, seed=1)
    number = blocks.rids.index(requests[3].rid)
    mine = np.flatnonzero(blocks.request == number)
    table = BlockTable.empty(700, GAMMA, confidence=True)
    source.fill(3, 1, table)
    for index in mine:
        row = blocks.anchor[index] - 1
        assert table.depth[row] == blocks.depth[index]
        np.testing.assert_array_equal(table.confidence[row], blocks.confidence[index])
    again = BlockTable.empty(40, GAMMA, confidence=False)
    source.fill(3, 600, again)
    np.testing.assert_array_equal(again.depth, table.depth[599:639])


def test_a_request_that_was_not_recorded_draws_from_those_alike(loads):
    records = RecordSet(loads / "full")
    blocks = uncensored_blocks(records)
    stranger = RequestRecord(rid="new", arrival_time_s=0.0, finish_time_s=1.0, input_length=4, output_length=4000)
    source = RecordedAcceptance(blocks, [stranger], seed=1)
    table = BlockTable.empty(4000, GAMMA, confidence=False)
    source.fill(0, 1, table)
    by_request = [blocks.depth[blocks.request == n].mean() for n in range(len(blocks.rids))]
    assert source.strangers == 1 and table.depth.mean() == pytest.approx(np.mean(by_request), rel=0.05)


def test_cached_prompt_tokens_are_not_prefilled_again():
    request = RequestRecord(
        rid="a", arrival_time_s=7.0, finish_time_s=9.0, input_length=50, output_length=9, cached_tokens=50
    )
    trace = recorded_trace([request], "x")
    assert (trace.arrival_s[0], trace.input_length[0], trace.output_length[0]) == (0.0, 50, 9)
    assert trace.cached_length is not None and trace.cached_length[0] == 49
    assert trace_facts(trace) == ("1 request", "98.0% of the prompt tokens are in the prefix cache and not prefilled")


def test_the_command(loads):
    command = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "compare", str(loads / "argmax")]
    plain = subprocess.run(command, capture_output=True, text=True)
    assert plain.returncode == 0 and " 0 different" in plain.stdout and "--fit" in plain.stdout, plain.stderr
    more = ["--fit", str(loads / "argmax"), "--concurrency", "6", "--complete"]
    table = subprocess.run([*command, *more], capture_output=True, text=True)
    assert "steady_output_throughput" in table.stdout and "kept" in table.stdout, table.stderr
    answer = json.loads(subprocess.run([*command, *more, "--json"], capture_output=True, text=True).stdout)
    assert answer["decisions"]["different"] == 0 and answer["decisions"]["equal"] > 500
    assert set(answer["accept_length"]) == {"predicted", "measured", "spread", "error"}
    idle = subprocess.run([*command, "--concurrency", "6"], capture_output=True, text=True)
    assert idle.returncode == 2 and "--concurrency" in idle.stderr


def test_loads_under_several_policies_are_chosen_from(loads):
    both = RecordSet([loads / "argmax", loads / "full"])
    with pytest.raises(InputError, match="ran under argmax:lag=2, fixed:k=4: choose one with --under"):
        predict(both, both, concurrency=6)
    with pytest.raises(InputError, match="no recorded load of that kind ran under hull"):
        predict(both, both, concurrency=6, under=make_policy("hull"))
    whole = predict(both, both, concurrency=6, under=make_policy("fixed:k=4"))
    assert whole.policy == "fixed:k=4" and whole.repetitions == 3
    # Its own blocks all stand at their anchors, and the same policy meets them again.
    assert abs(whole.figures["accept_length"].error) < 0.01


def test_records_of_which_nothing_can_be_read_are_refused(tmp_path):
    (tmp_path / "run-00000.dspark").write_bytes(b"nothing of ours" * 100)
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "compare", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 2 and "no readable record" in done.stderr and "offset 0" in done.stderr
