"""Whole simulations through compiled runs of steps and through Python's steps: the same to the last bit."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from simulated_worlds import ROOM, flat_cost, prefix_blocks, setting_of

from benchmarks.compiled_figures import difference, left_by
from sglang_dspark import jit
from sglang_dspark.cost import StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES, Fixed, Policy
from sglang_dspark.policies.contract import instances
from sglang_dspark.policies.drawing import random_cost
from sglang_dspark.policies.format import ONLINE
from simulator import Trace
from simulator.blocks.confidence import Confidence
from simulator.engine import price_tables
from simulator.engine.decoding import Step
from simulator.engine.replica import Engine
from simulator.engine.run import Setting
from simulator.engine.stepping import LOOPS, Stepper

TICK_S = 2.0**-10
"""Costs and stamps are whole numbers of it in some worlds, so that many things happen at once."""


@pytest.fixture(scope="module", autouse=True)
def compiled_code() -> None:
    if not jit.compiled():
        pytest.skip(f"nothing to compare: {jit.stated()}")
    assert jit.prepare() is None and jit.prepare(LOOPS) is None


@st.composite
def costs(draw: st.DrawFn, gamma: int) -> StepCost:
    """Flat ones and random staircases, that know the context or not; with every term, or none."""
    some = {name: draw(st.sampled_from([0.0, most])) for name, most in _MOST_S.items()}
    if draw(st.booleans()):
        ticks = {name: round(seconds / TICK_S) * TICK_S for name, seconds in some.items()}
        return flat_cost(TICK_S, 8 * TICK_S, 16 * TICK_S, slots=draw(st.sampled_from([None, 1, 3])), **ticks)
    seed, requests = draw(st.integers(0, 1 << 16)), draw(st.integers(2, 12))
    cost = random_cost(np.random.default_rng(seed), requests, gamma)
    slots = draw(st.sampled_from([None, requests]))
    return replace(cost, captured_requests=slots).with_terms("here", **some, prefill_token_s=1e-4, kv_tokens=ROOM)


_MOST_S = {
    "host_s": 0.02,
    "copy_s": 0.003,
    "adaptive_s": 0.002,
    "context_token_s": 3e-6,
    "draft_context_token_s": 1e-6,
    "width_context_s": 1e-6,
}


@st.composite
def traces(draw: st.DrawFn, *, tight: bool) -> Trace:
    """Clumps, ties with steps, and gaps; answers of one token and of more than there are blocks at hand.

    tight: requests that may end sooner than they ask for, so that memory is promised twice.
    """
    shapes = [(20, 30, 500)] if tight else [(3, 300, 900), (12, 30, 300), (25, 300, 60), (25, 100, 3)]
    count, prompt, output = draw(st.sampled_from(shapes))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    prompts, outputs = rng.integers(1, prompt, count), rng.integers(1, output + 1, count)
    arrival = np.sort(rng.uniform(0, draw(st.sampled_from([0.0, 0.5] if tight else [0.0, 0.5, 4.0])), count))
    if draw(st.booleans()):
        arrival = np.round(arrival / TICK_S) * TICK_S
    slack = draw(st.sampled_from([0, 20] if tight else [None, 0, 400]))
    trace = Trace(arrival, prompts, outputs, max_tokens=None if slack is None else outputs + slack, source="test")
    shares = draw(st.sampled_from([False, False, True]))
    return (
        replace(trace, prefix_blocks=draw(prefix_blocks([*zip(prompts.tolist(), outputs, strict=True)])))
        if shares
        else trace
    )


@st.composite
def worlds(draw: st.DrawFn, name: str | None = None) -> tuple[Setting, Policy]:
    """Any small setting, and a policy that it can run."""
    gamma, replicas = draw(st.sampled_from([1, 3, 5, 7])), draw(st.sampled_from([1, 1, 1, 2, 3]))
    tight = draw(st.sampled_from([False, False, True]))
    policy, cost, trace = draw(policies(gamma, name)), draw(costs(gamma)), draw(traces(tight=tight))
    least = int((trace.input_length + trace.output_length).max()) + 2 * (gamma + 1)
    elsewhere = draw(st.sampled_from([None, None, None, None, 0.0, 16 * TICK_S]))
    load = draw(st.sampled_from(["trace", "trace", "poisson", "closed"]))
    setting = setting_of(
        trace,
        cost,
        gamma=gamma,
        seed=draw(st.integers(0, 9)),
        concurrency=draw(st.integers(1, 12)) if load == "closed" else None,
        max_running_requests=draw(st.integers(6 if tight else 1, 12)),
        chunked_prefill_size=draw(st.sampled_from([64, 8192, 8192])),
        kv_tokens=draw(st.sampled_from([least, 2 * least, 3 * least] if tight else [ROOM, 3 * least])),
        schedule=draw(st.sampled_from([None, None, "synchronous", "no-overlap"])),
        replicas=replicas,
        router=draw(st.sampled_from(["round-robin", "least-loaded"])),
        dp_attention=replicas > 1 and elsewhere is None and draw(st.sampled_from([False, False, True])),
        prefill_elsewhere_s=elsewhere,
    )
    python = draw(st.sampled_from([None] * 8 + ["explore", "online"]))
    return replace(
        setting,
        belief=draw(st.one_of(st.just(cost), costs(gamma))),
        explore=0.3 if python == "explore" else 0.0,
        confidence=Confidence(online=python == "online"),
        request_rate=20.0 if load == "poisson" else None,
    ), policy


@st.composite
def policies(draw: st.DrawFn, gamma: int, name: str | None) -> Policy:
    """A registered policy with parameters that it accepts, and what it may learn online."""
    name = name or draw(st.sampled_from(list(POLICIES)))
    made = [one for one in instances(POLICIES[name], draw(st.integers(0, 99))) if _accepts(one, gamma)]
    policy = draw(st.sampled_from(made or [Fixed(gamma)]))
    for wrap in draw(st.sampled_from([(), (), *((one,) for one in ONLINE.values()), tuple(ONLINE.values())])):
        try:
            policy = wrap(policy)
        except InputError:
            pass  # it cannot be had around this one
    return policy


def _accepts(policy: Policy, gamma: int) -> bool:
    try:
        policy.check(gamma)
    except InputError:
        return False
    return True


def seen_of(setting: Setting, policy: Policy) -> tuple[dict[str, Any], list[Any]]:
    """What a run leaves behind, and all that its callbacks were told."""
    seen: list[Any] = []
    left = left_by(
        setting,
        policy,
        on_step=seen.append,
        on_tokens=lambda *chunk: seen.append(chunk),
        on_decode=lambda view: seen.append([getattr(view, field.name).tolist() for field in fields(view)]),
    )
    return left, seen


def runs(setting: Setting, policy: Policy) -> bool:
    try:
        setting.check(policy)
    except InputError:
        return False
    return True


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_compiled_runs_give_what_pythons_steps_give(world: tuple[Setting, Policy]) -> None:
    """Watched at every step or not, which takes steps one by one."""
    assume(runs(*world))
    compiled, (watched, told) = left_by(*world), seen_of(*world)
    with jit.numpy_only():
        expected, expected_told = seen_of(*world)
    assert difference(compiled, expected) == ""
    assert difference(watched, expected) == ""
    assert told == expected_told


class Mixed:
    """A stepper that by a coin runs on, takes one step, or leaves it to Python."""

    def __init__(self, stepper: Stepper, engine: Engine, rng: np.random.Generator) -> None:
        self.stepper, self.engine, self.rng, self.share = stepper, engine, rng, rng.random()
        self.step: Step | None = None
        self.lend = stepper.lend

    def begin(self) -> float:
        self.stepper._one_by_one = bool(self.rng.random() < 0.2)
        self.step = self.stepper.lend(self._begin) if self.rng.random() < self.share else None
        return self.stepper.begin() if self.step is None else self.engine.env.now + self.step.seconds

    def _begin(self) -> Step:
        """`Engine.begin_decode` after memory has been made."""
        engine = self.engine
        engine.batch.refill()
        kv = engine.memory.used(engine.batch.size)
        return engine.execute(engine.decoder.decide(engine.batch, engine.memory.context, len(engine.queue), kv))

    def end(self) -> list[tuple[int, float]]:
        if self.step is None:
            return self.stepper.end()
        self.engine.end_decode(self.step)
        return []


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.integers(0, 99))
def test_it_does_not_matter_who_takes_a_step(world: tuple[Setting, Policy], seed: int) -> None:
    assume(runs(*world))
    with pytest.MonkeyPatch.context() as patch:
        mix(patch, seed)
        mixed = left_by(*world)
    with jit.numpy_only():
        assert difference(mixed, left_by(*world)) == ""


def mix(patch: pytest.MonkeyPatch, seed: int) -> None:
    rng, made = np.random.default_rng(seed), Stepper.of

    def of(engine: Engine) -> Mixed | None:
        stepper = made(engine)
        return None if stepper is None else Mixed(stepper, engine, rng)

    patch.setattr(Stepper, "of", of)


@pytest.mark.parametrize("answer", range(3, 7))
def test_clients_that_come_as_a_run_ends_are_prefilled_together(answer: int) -> None:
    """The second comes as a step begins, the third as it ends, and with it the run: the end of that was placed before
    the third was on its way, where a step of its own is placed after."""
    ends = 16 + 9 * (answer - 1)
    arrival = np.array([0, ends - 9, ends]) * TICK_S
    setting = setting_of(
        Trace(arrival, np.full(3, 5), np.array([answer, 4, 4])), flat_cost(TICK_S, 8 * TICK_S, 16 * TICK_S)
    )
    compiled = left_by(setting, Fixed(0))
    with jit.numpy_only():
        assert difference(compiled, left_by(setting, Fixed(0))) == ""
    assert compiled["prefill_steps"] == 2


@pytest.mark.parametrize("name", POLICIES)
def test_tables_that_are_thrown_away_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve requests, graphs for eight, so that eager steps lie between; costs that know the context."""
    monkeypatch.setattr(price_tables, "_MOST_BYTES", 6000)
    rng = np.random.default_rng(3)
    trace = Trace(np.sort(rng.uniform(0, 2, 16)), rng.integers(1, 300, 16), rng.integers(1, 60, 16))
    cost, belief = (random_cost(rng, 12, 5).with_terms("x", context_token_s=1e-5, kv_tokens=ROOM) for _ in range(2))
    setting = setting_of(trace, replace(cost, captured_requests=8), gamma=5, max_running_requests=12)
    setting = replace(setting, belief=belief)
    for policy in instances(POLICIES[name], 1):
        if runs(setting, policy):
            compiled = left_by(setting, policy)
            with jit.numpy_only():
                assert difference(compiled, left_by(setting, policy)) == ""
