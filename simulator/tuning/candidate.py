"""One candidate of a search: a policy with the block size and the limit of running requests that it runs at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from sglang_dspark.policies import Policy, policy_to_string
from simulator.engine.run import Setting


@dataclass(frozen=True)
class Candidate:
    """gamma, max_running_requests: None takes what the setting has."""

    policy: Policy
    gamma: int | None = None
    max_running_requests: int | None = None

    def setting(self, setting: Setting) -> Setting:
        """The setting that this candidate runs in."""
        if self.gamma is not None and self.policy.drafts:
            setting = replace(setting, drafter=setting.drafter.cut(self.gamma))
        if self.max_running_requests is not None:
            limited = replace(setting.engine, max_running_requests=self.max_running_requests)
            setting = replace(setting, engine=limited)
        return setting

    @property
    def text(self) -> str:
        """Policy, and what else is not the setting's own."""
        more = {"gamma": self.gamma, "max_running_requests": self.max_running_requests}
        said = ", ".join(f"{name} {value}" for name, value in more.items() if value is not None)
        return policy_to_string(self.policy) + (f" ({said})" if said else "")

    @property
    def simplicity(self) -> tuple[int, int, int, str]:
        """Smaller is simpler: no drafter, a fixed length, a rule on the past, a live rule; then fewer parameters that
        are not their defaults; then fewer draft tokens.
        """
        policy = self.policy
        kind = 0 if not policy.drafts else 1 if policy.name == "fixed" else 3 if policy.live else 2
        changed = sum(getattr(policy, each.name) != each.default for each in dataclasses.fields(policy))
        changed = 0 if policy.name == "fixed" else changed  # the length is what a fixed policy is
        changed += (self.gamma is not None) + (self.max_running_requests is not None)
        length = getattr(policy, "k", 0)
        return kind, changed, length if isinstance(length, int) else 0, self.text
