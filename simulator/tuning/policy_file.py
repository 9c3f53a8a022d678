"""What a search hands over: the policy file with what it was found for, and the server's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.cost import write_atomically
from sglang_dspark.policies import policy_to_json, policy_to_string
from simulator.run_store import release
from simulator.tuning.tune import Tuned

VERSION = 1


def write_policy(path: Path, tuned: Tuned) -> None:
    """Write the recommended policy with its `meta`, whole or not at all. Errors: InputError."""
    best = tuned.finals.recommended(tuned.objectives[0]).candidate
    document = {**policy_to_json(best.policy), "meta": policy_meta(tuned)}
    write_atomically(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def policy_meta(tuned: Tuned) -> dict[str, Any]:
    """What the policy was found for, and what that is worth."""
    finals, first = tuned.finals, tuned.objectives[0]
    best, base, gap = finals.recommended(first), finals.base(first), finals.gap(first)
    setting = best.candidate.setting(tuned.settings[0])
    return {
        "version": VERSION,
        "made_by": f"dspark tune {release()}",
        "gamma": setting.drafter.gamma,
        "max_running_requests": setting.server(best.candidate.policy).max_running_requests,
        "profile": setting.cost.name,
        **({"profile_is": "an estimate, not measured"} if setting.cost.is_estimate else {}),
        "trace": setting.trace.source,
        "loads": [each.concurrency or each.request_rate or "trace" for each in tuned.settings],
        "objective": first.figure,
        "trials": len(tuned.trials),
        "seed": setting.seed,
        "tuned": finals.winner.text,
        "better_than_baselines": finals.better(first),
        "best_baseline": policy_to_string(base.candidate.policy),
        "gain": {"mean": gap.mean, "low": gap.low, "high": gap.high},
        "exact_table_only": None if tuned.robustness is None else tuned.robustness.exact_only,
    }


def server_command(tuned: Tuned, path: Path) -> str:
    """The command that serves with the recommended policy; MODEL and DRAFT are for the user to name."""
    best = tuned.finals.recommended(tuned.objectives[0]).candidate
    meta, setting = policy_meta(tuned), best.setting(tuned.settings[0])
    flags = ["--model-path MODEL"]
    if best.policy.drafts:
        flags += ["--speculative-algorithm DSPARK", "--speculative-draft-model-path DRAFT"]
        flags += [f"--speculative-dspark-block-size {meta['gamma']}", f"--speculative-dspark-policy {path}"]
        flags += [f"--speculative-dspark-profile {setting.cost.meta.get('file') or setting.cost.name}"]
        flags += ["--speculative-dspark-allow-estimate"] if setting.cost.is_estimate else []
    if setting.engine.max_running_requests is not None:
        flags.append(f"--max-running-requests {setting.engine.max_running_requests}")
    elif setting.server(best.policy).flag:
        flags.append(setting.server(best.policy).flag)
    if setting.tp is not None:
        flags.append(f"--tp-size {setting.tp}")
    if setting.engine.chunked_prefill_size is not None:
        flags.append(f"--chunked-prefill-size {setting.engine.chunked_prefill_size}")
    return " \\\n    ".join(["python -m sglang.launch_server", *flags])
