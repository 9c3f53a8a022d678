"""SGLang #35413: compact verification on H200, everything verified against a cost table derived at capture."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.policies import make_policy
from simulator import DRAFTERS, Acceptance, Confidence, Engine, EngineSettings, Load
from simulator.inputs import prepare
from simulator.results.metrics import Figures
from simulator.results.run import run_once
from simulator.traces.random import random_trace

from .rows import PREDICTED, Group, Row, Section, Tried, errors
from .tables import table
from .worlds import THROUGHPUT, at_length

SHIPPED = {"Qwen3-14B": "estimate-h200-qwen3-14b-bf16", "Qwen3-8B": "estimate-h200-qwen3-8b-bf16"}
"""Estimates that ship as files; others are estimated anew."""
FLASH = ",moe=fp8_block"
"""Of the model's own MXFP4 experts the library has no kernel times on H200."""
SHAPES = {
    "Qwen3-14B": ("dspark:qwen3-14b", "chat", 7),
    "Qwen3-8B": ("dspark:qwen3-8b", "chat", 7),
    "Qwen3-4B": ("dspark:qwen3-4b", "chat", 7),
    "DeepSeek-V4-Flash": ("dspark:deepseek-v4-pro", "code", 5),
}
"""Whose shape of acceptance is shifted to the accept length that the source gives, and gamma."""
PROMPT, OUTPUT = 1024, 512
ADAPTIVE = "argmax:lag=2"
SHORT = ("Qwen3-14B", 64)
BLAME = (
    "The gains come out too large: estimates have no cost of adaptivity. A millisecond a step takes much of the Qwen3 "
    "models' error away; V4-Flash, which lost 6 and 8 %, takes about three, more than ROCm, or a cost table that was "
    "wrong (its accept length fell more than the model's: it trimmed more than these costs say).",
)


@lru_cache(maxsize=8)
def cost_of(model: str, tp: str) -> StepCost:
    """The estimate for this model on H200."""
    anew = f"estimate:h200_sxm/{model},tp={tp}{FLASH if 'V4' in model else ''}"
    return load_profile(SHIPPED.get(model, anew))


@lru_cache(maxsize=128)
def run(
    model: str,
    in_flight: int,
    policy: str,
    surcharge: float = 0.0,
    slope: float = 1.0,
    prompt: int = PROMPT,
    spread: float = 1.0,
) -> Figures:
    """One arm. slope: factor on what a verify step costs beyond its smallest."""
    row = next(each for each in table("sglang_35413") if (each["model"], int(each["in_flight"])) == (model, in_flight))
    cost = cost_of(model, row["tp"])
    seconds = cost.verify.seconds
    verify = replace(cost.verify, seconds=seconds[..., :1] + slope * (seconds - seconds[..., :1]))
    cost = replace(cost, verify=verify, terms={**cost.terms, "adaptive_s": surcharge})
    name, domain, gamma = SHAPES[model]
    accept = at_length(DRAFTERS[name].acceptance[domain], float(row["accept_stock"]), gamma)
    head = Confidence.of("raw")
    head = replace(
        head,
        spread_request=spread * head.spread_request,
        spread_block=spread * head.spread_block,
        spread_position=spread * head.spread_position,
    )
    setting = prepare(
        Load(random_trace(6 * in_flight, prompt, OUTPUT, 0.5), concurrency=in_flight),
        Engine(cost, settings=EngineSettings(max_running_requests=in_flight)),
        Acceptance(own=accept, confidence=head),
    )
    return run_once(setting, make_policy(policy))[0]


def rows(models: tuple[str, ...] | None = None, loads: tuple[int, ...] = (48, 64), **setting: float) -> list[list[Row]]:
    """(gains in throughput, accept lengths of the adaptive arm)."""
    gains, lengths = [], []
    shared = {key: value for key, value in setting.items() if key in ("slope", "prompt")}
    for each in table("sglang_35413"):
        model, load = each["model"], int(each["in_flight"])
        if (models is not None and model not in models) or load not in loads:
            continue
        stock = run(model, load, f"fixed:k={SHAPES[model][2]}", **shared)  # type: ignore[arg-type]
        patched = run(model, load, ADAPTIVE, **setting)  # type: ignore[arg-type]
        said = float(each["patched"]) / float(each["stock"]) - 1
        mine = patched[THROUGHPUT] / stock[THROUGHPUT] - 1
        gains.append(Row(f"{model} TP{each['tp']}, {load} in flight", said, mine, "gain", PREDICTED))
        accept = float(each["accept_patched"])
        lengths.append(Row(f"{model}, {load} in flight", accept, patched["accept_length"], "tokens", PREDICTED))
    return [gains, lengths]


def section(short: bool = False) -> Section:
    """short: one model and load, nothing tried."""
    gains, lengths = rows((SHORT[0],), (SHORT[1],)) if short else rows()
    return Section(
        "captured",
        "SGLang #35413: a cost table derived at capture, on H200",
        "Step costs are [estimates](estimates.md); acceptance is shifted to the accept length of the stock arm. "
        "Prompts of 1,024 and outputs of up to 512 tokens are assumed: the source does not say. DeepSeek-V4-Flash is "
        "taken with experts in blocks of fp8 (there are no kernel times of its own MXFP4 ones on H200), gamma 5 and "
        "V4-Pro's shape. Nothing was fitted or chosen by these figures.",
        (
            Group("SGLang #35413, gain over verifying everything", tuple(gains)),
            Group("SGLang #35413, accept length of the adaptive arm", tuple(lengths)),
        ),
        (),
        () if short else _varied(),
        blame=BLAME,
    )


def _varied() -> tuple[Tried, ...]:
    changes: dict[str, dict[str, float]] = {
        "as above": {},
        "adaptivity costs 1 ms a step": {"surcharge": 0.001},
        "adaptivity costs 3 ms a step": {"surcharge": 0.003},
        "verify steps rise half as steeply": {"slope": 0.5},
        "verify steps rise twice as steeply": {"slope": 2.0},
        "no prompts to prefill": {"prompt": 1},
        "blocks spread half as much": {"spread": 0.5},
    }
    found = []
    for words, change in changes.items():
        for models, who in ((("Qwen3-14B", "Qwen3-8B", "Qwen3-4B"), "Qwen3"), (("DeepSeek-V4-Flash",), "V4-Flash")):
            gains, lengths = rows(models, **change)
            found.append(Tried(f"{who}: {words}", (errors(gains), errors(lengths))))
    return tuple(found)
