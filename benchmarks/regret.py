"""What each policy loses against the best shipped rule that is given ideally calibrated confidences and true costs.

Run: python benchmarks/regret.py TRACE [--full] [--out docs/regret.svg] [--jobs 2]

Regret of a policy in a case = 1 - its steady tokens/s / those of the best reference rule in the same world with ideal
knowledge: its confidences are the true conditionals and its believed costs the real ones. One factor at a time is moved
off a named centre (64 in flight, SGLang's graphs, the paper's Qwen3-4B acceptance, calibrated, true costs, 200 tokens);
--full takes the product. What is off is off for what the policies see and believe; draws and engine are the same. Each
policy runs under its own schedule. The case "500 steps after it" is the drift once it has been learned: tokens/s from
500 decode steps after half of the tokens are out, until the batch drains.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pictures

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.policies import Policy, make_policy
from simulator import load_trace
from simulator.blocks.confidence import Confidence
from simulator.blocks.drafters import find_drafter
from simulator.engine.recorder import StepView
from simulator.engine.run import Setting
from simulator.engine.settings import EngineSettings
from simulator.parallel import run_all
from simulator.results.run import run_once
from simulator.traces import Trace

PROFILE = "vllm-b300-dsv4-flash"
FIXED = tuple(f"fixed:k={k}" for k in (3, 5, 7))
REFERENCES = (*FIXED, "hull", "lookahead", "foresight", "argmax:lag=2")
POLICIES = (
    *FIXED,
    "early-stop",
    "hull",
    "lookahead",
    "argmax:lag=2",
    "foresight",
    "hull:calibrate=online",
    "argmax:lag=2,calibrate=online",
    "argmax:lag=2,costs=online",
    "self-tuning",
    "self-tuning:rule=foresight",
)
DRIFT = "bias +1, then -1"
RELEARNED = 500
"""Decode steps."""
CALIBRATIONS = {
    "calibrated": {"temperature": 1.0, "bias": 0.0},
    "bias -1": {"temperature": 1.0, "bias": -1.0},
    "bias +1": {"temperature": 1.0, "bias": 1.0},
    "temperature 2": {"temperature": 2.0, "bias": 0.0},
    "temperature 0.5": {"temperature": 0.5, "bias": 0.0},
    "bias -1, temperature 2": {"temperature": 2.0, "bias": -1.0},
    DRIFT: {"temperature": 1.0, "bias": 1.0, "drift": -2.0},
    "noise 1": {"temperature": 1.0, "bias": 0.0, "noise": 1.0},
}
COSTS = ("true", "whole +25 %", "slope +25 %", "tiers 10 %")


@dataclass(frozen=True)
class World:
    """One case. Every field is one factor of the grid."""

    in_flight: int = 64
    graphs: str = "sglang"
    drafter: str = "dspark"
    calibration: str = "calibrated"
    costs: str = "true"
    output: int = 200
    relearned: bool = False
    """Whether only the steps count that come `RELEARNED` or more after the drift."""

    @property
    def name(self) -> str:
        """What differs from the centre."""
        centre = World()
        changed = [f"{getattr(self, key)}" for key in FACTORS if getattr(self, key) != getattr(centre, key)]
        after = [f"{RELEARNED} steps after it"] if self.relearned else []
        return ", ".join(changed + after) or "the centre"


FACTORS: dict[str, tuple[object, ...]] = {
    "in_flight": (8, 16, 32, 48, 64, 96, 128, 160),
    "graphs": ("sglang", "profile"),
    "drafter": ("dspark", "dspark:deepseek-v4-flash", "dspark:qwen3-14b"),
    "calibration": tuple(CALIBRATIONS),
    "costs": COSTS,
    "output": (10, 30, 200),
}


def worlds(full: bool) -> Iterator[World]:
    """The centre and one factor at a time, or the product."""
    if full:
        for values in itertools.product(*FACTORS.values()):
            yield World(**dict(zip(FACTORS, values, strict=True)))  # type: ignore[arg-type]
        return
    yield World()
    for key, values in FACTORS.items():
        for value in values:
            if value != getattr(World(), key):
                yield replace(World(), **{key: value})  # type: ignore[arg-type]
    yield World(calibration=DRIFT, relearned=True)


def believed(cost: StepCost, how: str) -> StepCost:
    """The step costs as a policy believes them."""
    verify = cost.verify.seconds
    if how == "whole +25 %":
        return replace(cost, name="whole", verify=replace(cost.verify, seconds=1.25 * verify))
    if how == "slope +25 %":
        return replace(cost, name="slope", verify=replace(cost.verify, seconds=verify[0] + 1.25 * (verify - verify[0])))
    if how == "tiers 10 %":
        wrong = np.random.default_rng(0).uniform(0.9, 1.1, verify.size)
        return replace(cost, name="tiers", verify=replace(cost.verify, seconds=verify * wrong))
    return cost


def setting(world: World, trace: Trace, *, ideal: bool) -> Setting:
    """The world as the policies meet it, or with ideal confidences and beliefs."""
    cost = load_profile(PROFILE)
    output = np.maximum(1, np.round(trace.output_length * (world.output / trace.output_length.mean())).astype(np.int64))
    return Setting(
        trace=replace(trace, output_length=output),
        cost=cost,
        belief=cost if ideal else believed(cost, world.costs),
        drafter=find_drafter(world.drafter),
        confidence=Confidence(**CALIBRATIONS["calibrated" if ideal else world.calibration]),
        concurrency=world.in_flight,
        engine=EngineSettings(max_running_requests=world.in_flight),
        graphs=world.graphs,
    )


def regrets(world: World, trace: Trace, replications: int, jobs: int | None) -> dict[str, float]:
    """Regret by policy."""

    def throughputs(texts: tuple[str, ...], ideal: bool) -> dict[str, float]:
        where, policies = setting(world, trace, ideal=ideal), [make_policy(text) for text in texts]
        if world.relearned:
            found = [[relearned(where, policy, number) for number in range(replications)] for policy in policies]
        else:
            runs = run_all(where, policies, replications, jobs)
            found = [[run["steady_output_throughput"] for run in by] for by in runs]
        return {text: float(np.mean(by)) for text, by in zip(texts, found, strict=True)}

    best = max(throughputs(REFERENCES, ideal=True).values())
    return {text: 1.0 - found / best for text, found in throughputs(POLICIES, ideal=False).items()}


def relearned(where: Setting, policy: Policy, replication: int) -> float:
    """Tokens/s from `RELEARNED` decode steps after half of the tokens, where the drift is, until the batch drains."""
    steps: list[StepView] = []
    run_once(where, policy, replication, on_step=steps.append)
    out = np.cumsum([step.committed for step in steps])
    decoding = np.array([step.kind == "decode" for step in steps])
    begin = int(np.searchsorted(out, out[-1] / 2))
    begin = int(np.flatnonzero(decoding & (np.arange(len(steps)) >= begin))[RELEARNED])
    end = max(index for index, step in enumerate(steps) if step.waiting or step.running == where.concurrency)
    assert end > begin + RELEARNED / 2, f"{end - begin} steps are left, expected more --requests"
    return float((out[end] - out[begin]) / (steps[end].end_s - steps[begin].end_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--full", action="store_true", help="the product of all factors, for hours")
    parser.add_argument("--requests", type=int, default=12, help="answers of 200 tokens per request in flight")
    parser.add_argument("--replications", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--only", help="cases whose name holds this text")
    parser.add_argument("--out", type=Path, help="picture (.svg)")
    args = parser.parse_args()
    print(
        "regret in %, by case\n" + f"{'case':28s}" + "".join(f" {_short(text):>13s}" for text in POLICIES), flush=True
    )
    found: dict[str, dict[str, float]] = {}
    for world in worlds(args.full):
        if args.only and args.only not in world.name:
            continue
        # Short answers say little each: as many tokens as at the centre.
        requests = args.requests * (4 if world.relearned else max(1, World().output // world.output))
        trace = load_trace(args.trace, limit=max(400, requests * world.in_flight))
        found[world.name] = regrets(world, trace, args.replications, args.jobs)
        print(f"{world.name:28s}" + "".join(f"{100 * value:14.2f}" for value in found[world.name].values()), flush=True)
    worst = {text: max(by[text] for by in found.values()) for text in POLICIES}
    print(f"{'worst':28s}" + "".join(f"{100 * value:14.2f}" for value in worst.values()))
    if args.out is not None:
        draw(found, args.out)


def _short(text: str) -> str:
    short = text.replace(":lag=2,", ":").replace(":lag=2", "").replace("rule=", "")
    return short.replace("calibrate=online", "cal").replace("costs=online", "costs")


def draw(found: dict[str, dict[str, float]], out: Path) -> None:
    """One row a policy, one column a case, regret by colour; the table has the figures."""
    plt = pictures.pyplot()
    values = 100 * np.array([[by[text] for by in found.values()] for text in POLICIES])
    figure, axes = plt.subplots(figsize=(0.45 * len(found) + 3, 0.32 * len(POLICIES) + 2.2))
    image = axes.imshow(values, cmap="cividis_r", vmin=0, vmax=10, aspect="auto")
    axes.set_xticks(range(len(found)), list(found), rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(POLICIES)), [_short(text) for text in POLICIES], fontsize=7)
    figure.colorbar(image, label="regret, %")
    figure.tight_layout()
    pictures.save(figure, out)


if __name__ == "__main__":
    main()
