"""The simulator against queueing theory and identities: M/D/1, Little's law, offered load, closed loop, routers."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest
import simpy
from simulated_worlds import finished, flat_cost, setting_of, trace_of

from sglang_dspark.policies import make_policy
from simulator.engine.recorder import StepView
from simulator.engine.replica import Engine
from simulator.engine.run import Assembly, Setting, assemble
from simulator.results.run import run_once
from simulator.traces import scale_rate

SERVICE_S = 0.02
T_999 = 3.65  # Student's t, 99.9 % two-sided, 29 degrees of freedom


def one_server(output: int, load: float, count: int) -> Setting:
    """One request at a time, each served in SERVICE_S by a prefill and output - 1 equal steps; Poisson arrivals."""
    step = SERVICE_S / output
    setting = setting_of(
        trace_of([(7, output)] * count),
        flat_cost(0.0, step, step),
        max_running_requests=1,
        schedule="no-overlap",
        seed=3,
    )
    return replace(setting, request_rate=load / SERVICE_S)


def batch_means(values: np.ndarray, batches: int = 30) -> tuple[float, float]:
    """Mean and half width of its 99.9 % interval from means of consecutive batches, the first tenth left out."""
    steady = values[len(values) // 10 :]
    means = np.array([part.mean() for part in np.array_split(steady, batches)])
    return float(means.mean()), T_999 * float(means.std(ddof=1)) / batches**0.5


@pytest.mark.parametrize(("load", "output", "count"), [(0.3, 1, 6000), (0.6, 3, 6000), (0.8, 1, 12000)])
def test_waiting_time_is_that_of_m_d_1(load: float, output: int, count: int) -> None:
    """Mean wait load * D / (2 (1 - load)) (Pollaczek and Khinchine, constant service)."""
    _, recorder = run_once(one_server(output, load, count), make_policy("none"))
    sojourn = recorder.finish_s - recorder.sent_s
    assert sojourn.min() >= SERVICE_S - 1e-9
    mean, half = batch_means(sojourn - SERVICE_S)
    theory = load * SERVICE_S / (2 * (1 - load))
    assert abs(mean - theory) <= half, (mean, half, theory)
    assert half <= 0.2 * theory, "the interval is too wide to say anything"


def test_little_s_law_holds_for_a_count_taken_from_outside() -> None:
    """Requests in the system, counted by a clock of its own, against arrival rate times mean sojourn."""
    run = assemble(one_server(1, 0.7, 6000), make_policy("none"))
    counts: list[int] = []

    def count() -> Generator[simpy.Event, None, None]:
        while True:
            yield run.env.timeout(0.37 * SERVICE_S)
            counts.append(run.engines[0].load)

    run.env.process(count())
    run.env.run(until=run.router.done)
    sojourn = run.recorder.finish_s - run.recorder.sent_s
    rate = len(run.trace) / run.env.now
    assert np.mean(counts) == pytest.approx(rate * sojourn.mean(), rel=0.02)


def test_the_offered_rate_is_the_one_asked_for() -> None:
    count, rate = 4000, 12.5
    setting = replace(setting_of(trace_of([(3, 1)] * count), flat_cost(0, 1e-4, 1e-4)), request_rate=rate)
    for replication in range(3):
        _, recorder = run_once(setting, make_policy("none"), replication)
        gaps = np.diff(recorder.sent_s)
        assert abs(1 / gaps.mean() / rate - 1) < 4 / count**0.5
        assert gaps.std() * rate == pytest.approx(1, abs=0.1), "exponential gaps"
        assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 4 / count**0.5


def test_open_loop_sends_by_the_stamps_and_scaling_scales() -> None:
    trace = trace_of([(3, 5)] * 20, list(np.linspace(0.0, 3.0, 20)))
    for scale in (1.0, 2.5):
        run, _ = finished(setting_of(scale_rate(trace, scale)), make_policy("none"))
        assert run.recorder.sent_s == pytest.approx(trace.arrival_s / scale)


def test_all_at_once_is_an_infinite_rate() -> None:
    setting = replace(setting_of(trace_of([(3, 5)] * 20, [1.0] * 20)), request_rate=float("inf"))
    _, recorder = run_once(setting, make_policy("none"))
    assert (recorder.sent_s == 0).all()


@pytest.mark.parametrize("replicas", [1, 2])
def test_closed_loop_keeps_exactly_its_concurrency_in_flight(replicas: int) -> None:
    setting = setting_of(
        trace_of([(5, 7 + number % 9) for number in range(60)]),
        concurrency=6,
        replicas=replicas,
        max_running_requests=2,
    )
    flights = []

    def watch(run: Assembly, step: StepView) -> None:
        recorder = run.recorder
        sent = int((~np.isnan(recorder.sent_s)).sum())
        assert sent - recorder.completed == min(6, 60 - recorder.completed)
        flights.append(sent - recorder.completed)

    run, _ = finished(setting, make_policy("fixed"), watch)
    assert flights[0] == 6 and flights[-1] < 6
    order = run.recorder.sent_s
    assert (np.diff(order) >= 0).all(), "closed loop sends in trace order"


def test_steady_throughput_leaves_out_the_start_and_the_end() -> None:
    """Equal requests, one token a step for each: 4 running give 4 tokens per 10 ms, less a prefill step a request."""
    setting = setting_of(
        trace_of([(5, 50)] * 40),
        flat_cost(0.0, 0.01, 0.01),
        concurrency=8,
        max_running_requests=4,
        schedule="no-overlap",
    )
    figures, recorder = run_once(setting, make_policy("none"))
    # A round: one prefill step of four, then 49 steps of four.
    assert figures["steady_output_throughput"] == pytest.approx(4 * 50 / (50 * 0.01), rel=0.01)
    assert figures["output_throughput"] == pytest.approx(40 * 50 / (10 * 50 * 0.01), rel=1e-9)
    # From the first four tokens on (one prefill) until the last request but three of eight is done.
    assert figures["steady_window_s"] == pytest.approx(9 * 0.5 - 0.01)
    assert figures["steady_requests"] == 40 - 8
    assert figures["duration"] == pytest.approx(recorder.finish_s.max())


@pytest.mark.parametrize("router", ["round-robin", "least-loaded"])
def test_routers(monkeypatch: pytest.MonkeyPatch, router: str) -> None:
    """Long and short requests in turn: round-robin sends all long ones to one replica, least-loaded does not."""
    lengths = [(5, 400 if number % 2 else 10) for number in range(60)]
    setting = setting_of(trace_of(lengths, [0.05 * number for number in range(60)]), replicas=2, router=router)
    chosen: list[int] = []
    loads: list[tuple[int, int]] = []
    submit = Engine.submit

    def noting(engine: Engine, waiting: object) -> None:
        chosen.append(engine.replica)
        loads.append(tuple(each.load for each in run.engines))  # type: ignore[arg-type]
        submit(engine, waiting)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "submit", noting)
    run = assemble(setting, make_policy("none"))
    run.env.run(until=run.router.done)
    if router == "round-robin":
        assert chosen == [number % 2 for number in range(60)]
    else:
        assert all(pair[replica] == min(pair) for replica, pair in zip(chosen, loads, strict=True))
        long_ones = chosen[1::2]
        assert 0.3 < np.mean(long_ones) < 0.7


def test_a_second_replica_takes_half_of_the_load() -> None:
    lengths = [(5, 100)] * 40
    one = run_once(setting_of(trace_of(lengths), max_running_requests=4), make_policy("none"))[0]
    two = run_once(setting_of(trace_of(lengths), max_running_requests=4, replicas=2), make_policy("none"))[0]
    assert two["duration"] == pytest.approx(one["duration"] / 2, rel=0.05)
    assert two["mean_itl_ms"] == pytest.approx(one["mean_itl_ms"], rel=0.05)
    assert two["accept_length"] == one["accept_length"] == 1


def test_gaps_between_bursts_are_those_of_each_replica() -> None:
    """Steps of 10 ms on two replicas that start 5 ms apart: every gap is 10 ms, not 5."""
    setting = setting_of(trace_of([(5, 20), (5, 20)], [0.0, 0.005]), flat_cost(0, 0.01, 0.01), replicas=2)
    run, _ = finished(setting, make_policy("none"))
    _, gap_s, counts = run.recorder.bursts.rows()
    assert gap_s == pytest.approx(0.01)
    assert counts.sum(axis=0).tolist()[:2] == [0, 2 * 19]
    assert run.recorder.verify_steps.tolist() == [19, 19]
