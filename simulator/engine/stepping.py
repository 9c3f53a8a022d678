"""Runs of compiled decode steps of one replica: what they need goes in, what they leave behind comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_dspark import jit
from sglang_dspark.policies import Argmax, Goodput, Outcome, StepTiming, tier_costs
from sglang_dspark.policies.programs import Program, carry_of, learned_parts, program_of
from simulator.engine.admission import RATIO_LEAST, RATIO_STEP
from simulator.engine.decoding import Step
from simulator.engine.loops import layout as at
from simulator.engine.price_tables import PriceTables
from simulator.engine.settings import OVERLAPPED_LAG
from simulator.engine.state import Replica

LOOPS = "simulator.engine.loops.steps"


class Stepper:
    """Steps of an engine whose policy is one of the package's own.

    `begin` runs from now until a step must end before the eyes of others and says when that is; `end` ends it then.
    """

    def __init__(self, engine: Replica, program: Program, tables: PriceTables, steps: Any) -> None:
        self._engine, self._program, self._tables, self._loops = engine, program, tables, steps
        self._n, self._f = engine.room.n, engine.room.f
        recorder = engine.recorder
        self._one_by_one = any((recorder.on_step, recorder.on_tokens, recorder.on_decode))
        self._fix()
        self._learned_in()

    @classmethod
    def of(cls, engine: Replica) -> Stepper | None:
        """None where the steps of this engine are left to Python: a policy of somebody's own, or one that is shown what
        compiled code does not know."""
        model, recorder, capacity = engine.model, engine.recorder, engine.batch.capacity
        program, steps = program_of(model.policy), jit.in_use(LOOPS)
        if program is None or steps is None or model.online or model.explore:
            return None
        most = int((recorder.input_length + recorder.output_length).max(initial=0)) + model.kv_reserve
        if not all(PriceTables.fits(cost, capacity, most) for cost in (model.cost, model.belief)):
            return None
        tables = PriceTables(model.cost, model.belief, program, model.gamma, capacity, most)
        return cls(engine, program, tables, steps)

    def _fix(self) -> None:
        """Numbers that never change."""
        engine, n, f, program = self._engine, self._n, self._f, self._program
        model, policy, cost = engine.model, engine.model.policy, engine.model.cost
        floor, cap = program.rule.bounds(model.gamma)
        n[[at.KIND, at.FLOOR, at.CAP]] = program.kind, floor, cap
        n[[at.LAG, at.LEAST, at.COLD]] = program.rule.max_lag, program.least, program.cold
        n[[at.CALIBRATED, at.REPRICED, at.LEARNS]] = program.calibrated, program.repriced, policy.learns
        n[at.OUTCOME_LAG] = OVERLAPPED_LAG if model.schedule == "overlapped" else 1
        n[at.LEAVE_LAG], n[at.PENDING] = int(model.schedule != "no-overlap"), -1
        n[[at.PUBLISHES, at.DRAFTS, at.LIVE]] = policy.max_lag > 0, policy.drafts, policy.live
        n[[at.SCHEDULE, at.RESERVE]] = at.SCHEDULES[model.schedule], engine.memory.reserve
        n[at.STOP_AT_FINISH] = engine.answers_finishes
        n[at.STOP_AT_LEAVE] = engine.memory.cache is not None
        n[[at.RULE_CONTEXT, at.COST_CONTEXT]] = model.belief.knows_context, cost.knows_context
        terms = cost.terms
        f[[at.HOST_S, at.ADAPTIVE_S, at.COPY_S]] = terms["host_s"], model.adaptive_s, terms["copy_s"]
        f[[at.WIDTH_S, at.RATIO_STEP, at.RATIO_LEAST]] = terms["width_context_s"], RATIO_STEP, RATIO_LEAST
        last, slots, requests, tokens, eager = cost.spans
        f[[at.LAST_CAPTURED, at.CAPTURED_REQUESTS]] = last, slots
        f[[at.FEWEST, at.MOST_REQUESTS, at.LOW, at.HIGH]] = *requests, *tokens
        f[[at.EAGER_LOW, at.EAGER_HIGH]] = eager

    def begin(self) -> float:
        """Begin a step now, the host having looked, and others after it; when the last of them ends."""
        engine, n, f, tables = self._engine, self._n, self._f, self._tables
        batch, memory, tally, bursts = engine.batch, engine.memory, engine.tally, engine.tally.bursts
        horizon, late, blocked = engine.horizon()
        bursts.make_room(batch.capacity + 2)
        cache = memory.cache
        room = memory.capacity if cache is None else memory.capacity + cache.shared - cache.idle
        n[at.SIZE : at.SUM_BEYOND + 1] = (
            *(batch.size, batch.safe_steps, engine.steps, engine.decode_steps, memory.context),
            *(engine.decoder.head, engine.gaps.joins, len(engine.leaving), 0, bursts.count, 0),
            *(1 if self._one_by_one else 1 << 60, blocked, room, batch.high_slot, batch.wanted),
            *(tally.decode_steps, tally.verified_tokens, tally.committed_tokens, tally.request_steps, tally.rows),
            tally.steps_beyond_probes,
        )
        n[at.LATE] = late
        f[at.NOW : at.SUM_SECONDS + 1] = (
            *(engine.env.now, horizon, memory.ratio, engine.gaps.previous_s),
            *(tally.draft_s, tally.verify_s, tally.decode_s),
        )
        while True:
            why = self._loops.advance(
                *engine.arrays, tables.index, tables.entries, tables.floats, tables.ints, bursts.times, bursts.counts
            )
            if why == at.ENDS:
                break
            self._serve(why)
        self._out()
        engine.looked_s = f.item(at.NOW)
        return f.item(at.END)

    def end(self) -> list[tuple[int, float]]:
        """The step under way ends. Requests that ended since `begin`, in order, and when."""
        n, engine = self._n, self._engine
        bursts = engine.tally.bursts
        self._loops.finish(*engine.arrays, bursts.times, bursts.counts)
        self._out()
        count = n.item(at.FINISHED)
        requests: list[int] = engine.room.finished[0, :count].tolist()
        steps, when = engine.room.finished[1, :count].tolist(), engine.room.finished_s[:count].tolist()
        for request, taken in zip(requests, steps, strict=True):
            engine.recorder.left(request, taken)
        return list(zip(requests, when, strict=True))

    def _out(self) -> None:
        """Where the numbers stand now, to those who own them."""
        engine = self._engine
        batch, memory, gaps, tally = engine.batch, engine.memory, engine.gaps, engine.tally
        numbers = self._n[at.SIZE : at.SUM_BEYOND + 1].tolist()
        batch.size, batch.safe_steps, engine.steps, engine.decode_steps, memory.context = numbers[:5]
        engine.decoder.head, gaps.joins, engine.leaving.count, left, tally.bursts.count = numbers[5:10]
        if left:
            engine.reopen()
        batch.wanted = numbers[-7]
        tally.decode_steps, tally.verified_tokens, tally.committed_tokens = numbers[-6:-3]
        tally.request_steps, tally.rows, tally.steps_beyond_probes = numbers[-3:]
        memory.ratio, gaps.previous_s, *sums = self._f[at.RATIO : at.SUM_SECONDS + 1].tolist()
        tally.draft_s, tally.verify_s, tally.decode_s = sums

    def _serve(self, why: int) -> None:
        """What compiled steps lack."""
        n, tables, batch = self._n, self._tables, self._engine.batch
        if why == at.NEEDS_BLOCKS:
            batch.size, batch.safe_steps = n.item(at.SIZE), 0
            batch.refill()
            n[at.SAFE] = batch.safe_steps
        elif why == at.NEEDS_COST:
            tables.add_cost(n.item(at.NEED_REQUESTS), n.item(at.NEED_BUCKET))
        else:
            by_tier = tier_costs.corrections(self._tiers()) if self._program.repriced else ()
            tables.add_rule(n.item(at.NEED_REQUESTS), n.item(at.NEED_BUCKET), n.item(at.VERSION), by_tier)

    def _tiers(self) -> tier_costs.State:
        room, count = self._engine.room, self._n.item(at.MET)
        tokens, steps = room.met[:, :count].tolist()
        return tuple(zip(tokens, room.means[:count].tolist(), steps, strict=True))

    def lend(self, python_step: Callable[[], Step]) -> Step:
        """A step that Python takes: what the policy carries goes out and comes back."""
        decoder, room, n = self._engine.decoder, self._engine.room, self._n
        fit: Any = tuple(room.fit.tolist())
        decoder.carry = carry_of(self._engine.model.policy, self._tiers(), fit, self._inner_out())
        decoder.outcomes.clear()
        count = n.item(at.PENDING)
        if count >= 0:
            timing = StepTiming(n.item(at.PENDING_TOKENS), self._f.item(at.BELIEVED), self._f.item(at.MEASURED))
            known = timing if self._program.repriced else None
            lengths, accepted = room.pending[:, :count].copy()
            decoder.outcomes.append(Outcome(room.pending_units[:count].copy(), lengths, accepted, known))
        step = python_step()
        self._learned_in()
        return step

    def _learned_in(self) -> None:
        """What the policy carries, and the outcome on its way to it, into the arrays."""
        engine, n, room = self._engine, self._n, self._engine.room
        tiers, room.fit[:], inner = learned_parts(engine.model.policy, engine.decoder.carry)
        n[at.MET] = len(tiers)
        n[at.VERSION] += self._program.repriced  # tables without corrections stay right
        room.grains[:] = 0
        for index, (tokens, mean, steps) in enumerate(tiers):
            room.met[:, index], room.means[index] = (tokens, steps), mean
        for index, correction in enumerate(tier_costs.corrections(tiers) if tiers else ()):
            room.grains[:, index] = correction
        rule = self._program.rule
        if isinstance(rule, Goodput):
            room.rates[:] = *inner, rule.prior, 1.0 - 1.0 / rule.window
        elif isinstance(rule, Argmax):
            room.prior[:] = inner
        n[at.PENDING] = -1
        for outcome in engine.decoder.outcomes:
            size = n[at.PENDING] = len(outcome.lengths)
            room.pending_units[:size], room.pending[0, :size] = outcome.survival, outcome.lengths
            room.pending[1, :size] = outcome.accepted
            if outcome.timing is not None:
                n[at.PENDING_TOKENS], self._f[at.BELIEVED], self._f[at.MEASURED] = outcome.timing

    def _inner_out(self) -> Any:
        """What the rule itself carries."""
        room, rule = self._engine.room, self._program.rule
        if isinstance(rule, Goodput):
            return tuple(room.rates[:2].tolist())
        return room.prior.copy() if isinstance(rule, Argmax) else None
