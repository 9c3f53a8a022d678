"""Child of before.py: times what the checkout that comes first on PYTHONPATH does, with what both checkouts have."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import simulation_speed  # of that checkout: how its policies are asked for a decision

import simulator
from sglang_dspark.policies import make_policy
from simulator.blocks.acceptance import AcceptanceSource, BlockTable
from simulator.engine.run import Setting, assemble
from simulator.results.run import run_once

_spec = importlib.util.spec_from_file_location("loads_of_today", Path(__file__).with_name("loads.py"))
assert _spec is not None and _spec.loader is not None
loads = importlib.util.module_from_spec(_spec)  # the checkout may have other loads under this name
_spec.loader.exec_module(loads)


@lru_cache
def prepared(running: int, requests: int) -> tuple[Setting, float]:
    """Equal requests, of which the next one starts where one ends; the CPU seconds that drawing their blocks takes."""
    todo = loads.setting(loads.synthetic(requests), running)
    return todo, loads.drawing_s(todo, 3)


@lru_cache
def warmed(policy: str, running: int, requests: int) -> None:
    """What a first run compiles, loads and caches is done."""
    run_once(prepared(running, requests)[0], make_policy(policy))


def step(policy: str, running: int, requests: int) -> dict[str, float]:
    """One run: its CPU seconds, those of drawing its blocks (measured apart), its engine steps."""
    todo, drawing = prepared(running, requests)
    warmed(policy, running, requests)
    seconds, (found, _) = loads.timed(lambda: run_once(todo, make_policy(policy)))
    prefills = found["prefill_steps"]
    return {"seconds": seconds, "drawing": drawing, "steps": found["decode_steps"] + prefills, "prefills": prefills}


class Drawn:
    """Blocks that were drawn before: the same ones over and over."""

    def __init__(self, source: AcceptanceSource) -> None:
        self.gamma = source.gamma
        self._blocks = BlockTable.empty(512, source.gamma, confidence=True)
        source.fill(0, 0, self._blocks)

    def fill(self, request: int, first: int, out: BlockTable) -> None:
        """See `AcceptanceSource`."""
        some = self._blocks.rows(request % 256, request % 256 + len(out.depth))
        out.units[:], out.depth[:] = some.units, some.depth


def alone(policy: str, running: int, steps: int) -> dict[str, float]:
    """CPU seconds of that many decode steps, or somewhat more, of requests that neither come nor end meanwhile."""
    todo = loads.setting(loads.synthetic(running, 16 * steps), running)  # so long that compiled steps are worth it
    run = assemble(replace(todo, engine=replace(todo.engine, kv_tokens=1 << 40)), make_policy(policy))
    (engine,) = run.engines
    engine.batch.source = Drawn(run.model.source)
    warmed(policy, 2, 200)
    while engine.batch.size < running or run.recorder.decode_steps < 10:
        run.env.run(until=run.env.now + 0.1)
    done = run.recorder.decode_steps

    def some() -> None:
        while run.recorder.decode_steps < done + steps:
            run.env.run(until=run.env.now + 0.1)

    seconds, _ = loads.timed(some)
    return {"seconds": seconds, "steps": run.recorder.decode_steps - done}


def decision(policy: str, running: int) -> dict[str, float]:
    """CPU seconds of one host decision."""
    return {"seconds": simulation_speed.per_call(simulation_speed.decide_once(make_policy(policy), running), 3)}


def main() -> None:
    print(json.dumps({"simulator": simulator.__file__, "decided": simulation_speed.DECIDED}), flush=True)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        kind = step if "requests" in asked else alone if "steps" in asked else decision
        print(json.dumps(kind(**asked)), flush=True)


if __name__ == "__main__":
    main()
