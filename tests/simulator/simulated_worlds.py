"""Small settings for tests of the simulator, spies among the policies, and runs that check themselves at every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from sglang_dspark.cost import TERMS, StepCost
from sglang_dspark.cost.curves import Curve
from sglang_dspark.policies import BudgetRule, LengthRule, LiveBlock, Outcome, Past, Policy
from sglang_dspark.policies.arithmetic import Ints
from simulator import EngineSettings, Trace
from simulator.blocks.drafters import find_drafter
from simulator.engine.recorder import StepView
from simulator.engine.replica import Engine
from simulator.engine.run import Assembly, Setting, assemble
from simulator.traces import PrefixBlocks

ROOM = 1_000_000  # KV tokens that never run out here


def flat_cost(
    draft_s: float = 0.001, verify_s: float = 0.009, prefill_s: float = 0.02, slots: int | None = None, **terms: float
) -> StepCost:
    """Every step costs the same; `terms` override the scalar ones, `slots` is the largest batch with a graph."""
    given = {**dict.fromkeys(TERMS, 0.0), "kv_tokens": ROOM, "prefill_base_s": prefill_s}
    curves = Curve(np.array([1.0]), np.array([draft_s])), Curve(np.array([1.0]), np.array([verify_s]))
    return StepCost("flat", "tiered", *curves, captured_requests=slots, terms={**given, **terms})


def trace_of(lengths: list[tuple[int, int]], arrival_s: list[float] | None = None) -> Trace:
    """Requests of (prompt, output) tokens; all arrive at once unless told."""
    arrival = [0.0] * len(lengths) if arrival_s is None else sorted(arrival_s)
    prompts, outputs = zip(*lengths, strict=True)
    return Trace(np.array(arrival), np.array(prompts), np.array(outputs), source="test")


def setting_of(
    trace: Trace,
    cost: StepCost | None = None,
    *,
    gamma: int = 7,
    seed: int = 0,
    concurrency: int | None = None,
    **engine: Any,
) -> Setting:
    """A setting whose engine differs from the defaults by `engine`, on the graphs of the cost, if it has any."""
    model = cost or flat_cost()
    return Setting(
        trace,
        model,
        model,
        find_drafter("dspark", gamma),
        engine=EngineSettings(**engine),
        concurrency=concurrency,
        seed=seed,
        graphs="profile",
    )


def finished(
    setting: Setting,
    policy: Policy,
    watch: Callable[[Assembly, StepView], None] | None = None,
    most_steps: int = 20_000,
) -> tuple[Assembly, list[StepView]]:
    """Run to the end; `watch` sees the run after every engine step. More than `most_steps` is a livelock."""
    steps: list[StepView] = []
    run: list[Assembly] = []

    def on_step(step: StepView) -> None:
        steps.append(step)
        assert len(steps) <= most_steps, "livelock"
        if watch is not None:
            watch(run[0], step)

    run.append(assemble(setting, policy, on_step=on_step))
    run[0].env.run(until=run[0].router.done)
    return run[0], steps


def check_books(run: Assembly, step: StepView) -> None:
    """Requests, tokens and memory add up after this step, counted apart from the engine's own sums."""
    recorder, router = run.recorder, run.router
    running = sum(int((engine.batch.remaining[: engine.batch.size] > 0).sum()) for engine in run.engines)
    waiting = sum(engine.waiting + engine.entering for engine in run.engines)
    arrived = int((~np.isnan(recorder.sent_s)).sum())
    assert arrived == recorder.completed + router.failed + running + waiting
    assert sum(engine.load for engine in run.engines) == running + waiting
    assert step.committed <= step.tokens
    assert 0 <= step.kv <= run.model.kv_tokens
    delivered = 0
    for engine in run.engines:
        size = engine.batch.size
        rows, remaining = engine.batch.request[:size], engine.batch.remaining[:size]
        generated = recorder.output_length[rows] - remaining
        cut = engine.queue[0].done if engine.queue else 0
        # Prompts of a prefill step under way belong to nobody's list yet.
        assert engine.entering or engine.memory.context == int((recorder.input_length[rows] + generated).sum()) + cut
        alive = remaining > 0
        delivered += int(generated[alive].sum()) + sum(waiting.generated for waiting in engine.queue)
        check_prefix_cache(engine, int((recorder.input_length[rows] + generated).sum()) + cut)
    check_room(run, step)
    done = ~np.isnan(recorder.finish_s)
    delivered += int(recorder.output_length[done].sum())
    in_prefill = sum(engine.entering for engine in run.engines)
    assert in_prefill or delivered == recorder.output_tokens


def check_room(run: Assembly, step: StepView) -> None:
    """What is cached has no more room than is left; a prefill's requests take their reservations later."""
    later = 0 if step.kind == "decode" else step.committed * (run.model.kv_reserve + 1)
    assert step.cached is None or step.kv + step.cached <= run.model.kv_tokens + later


def check_prefix_cache(engine: Engine, context: int) -> None:
    """Every token is counted once, whoever shares it. context: of all running requests, shared tokens for each."""
    cache = engine.memory.cache
    if cache is None:
        return
    locks: Counter[int] = Counter()
    for request, (node, blocks) in cache.held.items():
        tokens = 0
        while node.parent is not None:
            locks[id(node)] += 1
            tokens += node.tokens
            node = node.parent
        assert tokens == cache.prompts.tokens(request, blocks)
    held = idle = shared = 0
    nodes = list(cache.tree.root.children.values())
    while nodes:
        node = nodes.pop()
        nodes += node.children.values()
        assert node.tokens > 0 and node.locks == locks[id(node)]
        held += node.tokens * (node.locks > 0)
        idle += node.tokens * (node.locks == 0)
        shared += node.tokens * max(node.locks - 1, 0)
    assert (idle, shared) == (cache.idle, cache.shared)
    if not engine.entering:  # else prompts of a prefill under way are locked and in no list yet
        private = context - held - shared
        assert private >= 0 and engine.memory.used(0) == private + held


def check_end(run: Assembly, steps: list[StepView]) -> None:
    """Everybody was served or refused, and the clock of every replica only went forward."""
    recorder, trace = run.recorder, run.trace
    too_long = trace.input_length + trace.output_length + run.model.kv_reserve > run.model.kv_tokens
    done = ~np.isnan(recorder.finish_s)
    assert (done == ~too_long).all() and run.router.failed == too_long.sum()
    assert (recorder.sent_s[done] <= recorder.first_token_s[done]).all()
    assert (recorder.first_token_s[done] <= recorder.finish_s[done]).all()
    assert sum(step.committed for step in steps) == trace.output_length[done].sum() == recorder.output_tokens
    for replica in range(len(run.engines)):
        ends = np.array([step.end_s for step in steps if step.replica == replica])
        starts = ends - np.array([step.seconds for step in steps if step.replica == replica])
        assert (starts[1:] >= ends[:-1] - 1e-9).all()


@st.composite
def prefix_blocks(draw: st.DrawFn, lengths: list[tuple[int, int]]) -> PrefixBlocks:
    """Blocks of a few kinds, so that prompts share some, of as many as a prompt has room for."""
    block_tokens = draw(st.integers(1, 70))
    blocks = [draw(st.lists(st.integers(0, 2), max_size=6))[: -(-prompt // block_tokens)] for prompt, _ in lengths]
    return PrefixBlocks(np.cumsum([0, *map(len, blocks)]), np.array(sum(blocks, []), dtype=np.int64), block_tokens)


@st.composite
def settings_to_try(draw: st.DrawFn) -> Setting:
    """Anything small: odd lengths, tiny chunks and memory, open and closed loop, replicas, all schedules."""
    count = draw(st.integers(1, 25))
    lengths = draw(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), min_size=count, max_size=count))
    arrival = draw(st.lists(st.floats(0, 2), min_size=count, max_size=count))
    replicas, gamma = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    trace = trace_of(lengths, arrival)
    return setting_of(
        draw(st.sampled_from([trace, replace(trace, prefix_blocks=draw(prefix_blocks(lengths)))])),
        flat_cost(slots=draw(st.sampled_from([None, 1, 3])), host_s=draw(st.sampled_from([0.0, 0.02]))),
        gamma=gamma,
        seed=draw(st.integers(0, 9)),
        concurrency=draw(st.one_of(st.none(), st.integers(1, 12))),
        max_running_requests=draw(st.integers(1, 8)),
        chunked_prefill_size=draw(st.integers(1, 128)),
        kv_tokens=draw(st.one_of(st.just(ROOM), st.integers(min(map(sum, lengths)) + 2 * (gamma + 1), 500))),
        schedule=draw(st.sampled_from([None, "synchronous", "no-overlap"])),
        replicas=replicas,
        router=draw(st.sampled_from(["round-robin", "least-loaded"])),
        dp_attention=replicas > 1 and draw(st.booleans()),
    )


OWN = "sglang_dspark.policies.classes.stopping"
"""Where a class must say that it comes from to be let look on what is sealed."""


@dataclass(frozen=True)
class Spy(BudgetRule):
    """Budget `k` tokens a request, and remembers what it was shown. Compare by `id`: memory is no parameter."""

    __module__ = OWN
    name: ClassVar[str] = "spy"
    learns: ClassVar[bool] = True
    k: int = 3
    lag: int = 2
    seen: list[tuple[Past, Ints, np.ndarray]] = field(default_factory=list, repr=False, compare=False)
    blocks: list[LiveBlock] = field(default_factory=list, repr=False, compare=False)
    outcomes: list[Outcome] = field(default_factory=list, repr=False, compare=False)
    learned_at: list[int] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        pass

    @property
    def max_lag(self) -> int:
        return self.lag

    def budget(self, past: Past) -> int:
        units, published = past.survival(self.lag)
        self.seen.append((past, units.copy(), published.copy()))
        return past.num_requests * self.k

    def decide(self, past: Past, live: LiveBlock) -> Any:
        self.blocks.append(LiveBlock(live.units.copy()))
        return super().decide(past, live)

    def learn(self, carry: Any, outcome: Outcome) -> Any:
        self.outcomes.append(outcome)
        self.learned_at.append(len(self.blocks))
        return carry


@dataclass(frozen=True)
class FewOrMany(LengthRule):
    """Verifies a different number of tokens at every request, to reach other anchors than `fixed` does."""

    __module__ = OWN
    name: ClassVar[str] = "few-or-many"
    reads_confidence: ClassVar[bool] = False

    def __post_init__(self) -> None:
        pass

    def admits(self, past: Past, position: int, confidence: np.ndarray) -> bool:
        return False

    def lengths(self, past: Past, tables: Any, live: LiveBlock) -> Ints:
        return np.arange(past.num_requests, dtype=np.int64) % (past.gamma + 1)
