"""Policy files that were tuned for a server: what they say of it, held against the one that is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sglang_dspark.policies import make_policy
from sglang_dspark.policies.parse import load_policy_meta
from simulator.engine.run import Setting


def tuned_elsewhere(policies: Sequence[str], setting: Setting) -> tuple[str, ...]:
    """One warning a policy file whose gamma or max_running_requests is another than the setting's."""
    said = []
    for text in policies:
        if not text.endswith(".json"):
            continue
        meta = load_policy_meta(Path(text))
        own = {
            "gamma": setting.drafter.gamma,
            "max_running_requests": setting.server(make_policy(text)).max_running_requests,
        }
        other = [f"{key} {meta[key]} (here {value})" for key, value in own.items() if meta.get(key, value) != value]
        if other:
            said.append(f"warning: {text} was tuned for {' and '.join(other)}: its gain was measured there")
    return tuple(said)
