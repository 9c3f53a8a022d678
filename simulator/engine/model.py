"""What all replicas of one run share: settings, policy, costs, acceptance, and how long a step takes."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.cost import StepCost
from sglang_dspark.policies import Policy
from sglang_dspark.policies.arithmetic import Ints
from simulator.blocks.acceptance import AcceptanceSource
from simulator.engine.prefix_cache import Prompts
from simulator.engine.server import Server
from simulator.engine.settings import EngineSettings


def kv_reserve(policy: Policy, gamma: int) -> int:
    """Slots held by a decoding request: two blocks, SGLang's double buffer (mem_cache/allocation_sizing.py:64)."""
    return 2 * (gamma + 1) if policy.drafts else 1


@dataclass(frozen=True)
class EngineModel:
    """Everything that is the same for all replicas of one run.

    server: limits, memory and graphs of each. slack: [N] tokens that a request may ask for beyond those that it gets,
    for its client allows more; None: clients ask for what they get and ignore the end of a sequence.

    cost: what steps cost. belief: what the policy believes they cost. schedule: one of `SCHEDULES`. online: confidences
    are learned from outcomes (`blocks.online`) instead of reported by a head.
    prompts: what the prefix cache may find in common; None: no cache. explore: share of the steps that verify
    everything, on coins named by `seed`.
    """

    settings: EngineSettings
    policy: Policy
    cost: StepCost
    belief: StepCost
    source: AcceptanceSource
    schedule: str
    server: Server
    slack: Ints | None = None
    online: bool = False
    prompts: Prompts | None = None
    explore: float = 0.0
    seed: int = 0

    @property
    def gamma(self) -> int:
        return self.source.gamma

    @property
    def kv_tokens(self) -> int:
        """KV capacity of a replica."""
        return self.server.kv_tokens

    @property
    def kv_reserve(self) -> int:
        """See `kv_reserve`."""
        return kv_reserve(self.policy, self.gamma)

    def prefill_seconds(self, new_tokens: int, context_tokens: float) -> float:
        """Seconds of a prefill step; see `StepCost.prefill_s`."""
        seconds, host = self.cost.prefill_s(new_tokens, context_tokens), self.cost.terms["host_s"]
        return seconds + host if self.schedule == "no-overlap" else max(seconds, host)

    @property
    def adaptive_s(self) -> float:
        """What a step costs more under a policy that needs survivals."""
        return self.cost.terms["adaptive_s"] if self.policy.adaptive else 0.0

    def width_context_s(self, lengths: Ints, contexts: Ints) -> float:
        """What verify attention costs beyond an even spread: wide blocks of long contexts. Both [R] tokens."""
        slope = self.cost.terms["width_context_s"]
        return slope * float(lengths @ contexts - lengths.sum() * contexts.mean()) if slope else 0.0

    def decode_seconds(self, draft: float, verify: float, *, live: bool) -> float:
        """Overlapped: the host works while the GPU does. Synchronous: the verify launch waits for the survivals.

        live: whether this step was decided on its own survivals.
        """
        terms = self.cost.terms
        host = terms["host_s"]
        verify = verify + self.adaptive_s
        if self.schedule == "overlapped":
            return max(draft + verify, host)
        if self.schedule == "synchronous":
            return draft + terms["copy_s"] + max(verify, host)
        return draft + (terms["copy_s"] if live else 0.0) + verify + host
