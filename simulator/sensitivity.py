"""Which assumption a verdict hangs on: the two leading policies again, with one assumption varied at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy
from simulator.engine.run import Setting
from simulator.parallel import run_all
from simulator.results.comparison import Comparison
from simulator.results.paired import Paired, paired
from simulator.results.surcharge import dearer
from simulator.results.varied import Sensitivity, Varied
from simulator.results.verdict import judged


def sensitivity(
    setting: Setting, policies: Sequence[Policy], comparison: Comparison, jobs: int | None = None
) -> Sensitivity:
    """The leading lossless policy and the best one of the other kind (adaptive or not), else the second best.

    Errors: InputError when fewer than two lossless policies are compared.
    """
    by = judged(comparison)
    sign = 1.0 if by.more_is_better else -1.0
    lossless = [(p, r) for p, r in zip(policies, comparison.results, strict=True) if p.lossless]
    ranked = sorted(lossless, key=lambda pair: sign * pair[1].figures[by.figure], reverse=True)
    if len(ranked) < 2:
        raise InputError("--sensitivity compares two lossless policies, and one is given: add another --policy")
    leader = ranked[0]
    others = [pair for pair in ranked[1:] if pair[0].adaptive != leader[0].adaptive]
    runner_up = (others or ranked[1:])[0]
    replications = comparison.setting["replications"]

    def gain(varied: Setting) -> Paired:
        runs = run_all(varied, [leader[0], runner_up[0]], replications, jobs)
        values, base = ([run[by.figure] for run in each] for each in runs)
        return paired(values, base, setting.windows)

    found = []
    for what, change in variations(setting):
        seen = gain(change(setting))
        worse = seen.verdict == ("lower" if by.more_is_better else "higher")
        single = seen.verdict == "one replication" and sign * seen.mean < 0
        found.append(Varied(what, seen, worse or single))
    asis = comparison.paired(leader[1], runner_up[1], by.figure)
    return Sensitivity(leader[1].policy, runner_up[1].policy, by.figure, asis, tuple(found))


def variations(setting: Setting) -> list[tuple[str, Callable[[Setting], Setting]]]:
    """(what, change): prefill dearer and cheaper, adaptivity that costs; where confidences are simulated, worse
    calibrated ones, and less or more spread between blocks."""
    out: list[tuple[str, Callable[[Setting], Setting]]] = [
        ("prefill half as dear", lambda each: _prefill(each, 0.5)),
        ("prefill twice as dear", lambda each: _prefill(each, 2.0)),
    ]
    for added in (0.0005, 0.002):
        total = setting.cost.terms["adaptive_s"] + added
        out.append((f"adaptivity costs {1e3 * total:.3g} ms a step", lambda each, s=total: dearer(each, s)))  # type: ignore[misc]
    if setting.recorded is not None or not setting.drafter.has_confidence:
        return out
    head = setting.confidence
    for what, changed in {
        "confidences too high (bias +1)": replace(head, bias=head.bias + 1),
        "confidences too low (bias -1)": replace(head, bias=head.bias - 1),
        "confidences too sharp (T 0.5)": replace(head, temperature=head.temperature * 0.5),
        "confidences too flat (T 2)": replace(head, temperature=head.temperature * 2),
        "confidences half as spread": replace(head, spread_block=head.spread_block / 2),
        "confidences more spread (x 1.5)": replace(head, spread_block=head.spread_block * 1.5),
    }.items():
        out.append((what, lambda each, c=changed: replace(each, confidence=c)))  # type: ignore[misc]
    return out


def _prefill(setting: Setting, factor: float) -> Setting:
    terms = {key: setting.cost.terms[key] * factor for key in ("prefill_base_s", "prefill_token_s", "prefill_pair_s")}
    cost = setting.cost.with_terms(**terms)
    return replace(setting, cost=cost, belief=cost if setting.belief is setting.cost else setting.belief)
