"""Which assumption a verdict hangs on: the two leading policies again, with one assumption varied at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy
from sglang_dspark.workers import Hire
from simulator.engine.run import Setting
from simulator.parallel import run_all
from simulator.results.comparison import Comparison
from simulator.results.paired import paired
from simulator.results.surcharge import dearer
from simulator.results.varied import Sensitivity, Varied
from simulator.results.verdict import why_none


def sensitivity(
    setting: Setting, policies: Sequence[Policy], comparison: Comparison, jobs: int | Hire | None = None
) -> Sensitivity | None:
    """The leading lossless policy and the best one of the other kind (adaptive or not), else the second best.

    None where the comparison gives no verdict that could flip. Errors: InputError, see `check_sensitivity`.
    """
    check_sensitivity(policies)
    if why_none(comparison):
        return None
    by = comparison.judged
    pairs = {result.policy: policy for policy, result in zip(policies, comparison.results, strict=True)}
    leader, *others = by.ranked(comparison.lossless)
    unlike = [one for one in others if pairs[one.policy].adaptive is not pairs[leader.policy].adaptive]
    runner_up = (unlike or others)[0]
    both = [pairs[leader.policy], pairs[runner_up.policy]]
    found = []
    for what, change in variations(setting, both):
        runs = run_all(change(setting), both, comparison.setting["replications"], jobs)
        values, base = ([run[by.figure] for run in each] for each in runs)
        gain = paired(values, base, setting.windows)
        worse = gain.verdict == ("lower" if by.more_is_better else "higher")
        single = gain.verdict == "one replication" and (gain.mean < 0) is by.more_is_better
        found.append(Varied(what, gain, worse or single))
    asis = comparison.paired(leader, runner_up, by.figure)
    return Sensitivity(leader.policy, runner_up.policy, by.figure, asis, tuple(found))


def check_sensitivity(policies: Sequence[Policy]) -> None:
    """Refuse (InputError) a sensitivity of fewer than two lossless policies."""
    if sum(policy.lossless for policy in policies) < 2:
        raise InputError("--sensitivity compares two lossless policies, and one is given: add another --policy")


def variations(setting: Setting, policies: Sequence[Policy]) -> list[tuple[str, Callable[[Setting], Setting]]]:
    """(what, change) of what concerns these policies: prefill dearer and cheaper where the server prefills, adaptivity
    that costs, and, where confidences are simulated, worse calibrated ones and less or more spread between blocks."""
    out: list[tuple[str, Callable[[Setting], Setting]]] = []
    if setting.engine.prefill_elsewhere_s is None:
        out += [
            ("prefill half as dear", lambda each: _prefill(each, 0.5)),
            ("prefill twice as dear", lambda each: _prefill(each, 2.0)),
        ]
    if not any(policy.adaptive for policy in policies):
        return out
    for added in (0.0005, 0.002):
        total = setting.cost.terms["adaptive_s"] + added
        out.append((f"adaptivity costs {1e3 * total:.3g} ms a step", lambda each, s=total: dearer(each, s)))  # type: ignore[misc]
    if setting.recorded is not None or not setting.drafter.has_confidence or setting.confidence.online:
        return out
    head = setting.confidence
    for what, changed in {
        "confidences too high (bias +1)": replace(head, bias=head.bias + 1),
        "confidences too low (bias -1)": replace(head, bias=head.bias - 1),
        "confidences too sharp (T / 2)": replace(head, temperature=head.temperature * 0.5),
        "confidences too flat (T x 2)": replace(head, temperature=head.temperature * 2),
        "confidences half as spread": replace(head, spread_block=head.spread_block / 2),
        "confidences more spread (x 1.5)": replace(head, spread_block=head.spread_block * 1.5),
    }.items():
        out.append((what, lambda each, c=changed: replace(each, confidence=c)))  # type: ignore[misc]
    return out


def _prefill(setting: Setting, factor: float) -> Setting:
    terms = {key: setting.cost.terms[key] * factor for key in ("prefill_base_s", "prefill_token_s", "prefill_pair_s")}
    cost = setting.cost.with_terms(**terms)
    return replace(setting, cost=cost, belief=cost if setting.belief is setting.cost else setting.belief)
