"""How the simulated engine is set up, with SGLang 0.5.23's defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy

SCHEDULES = ("overlapped", "synchronous", "no-overlap")
ROUTERS = ("round-robin", "least-loaded")
OVERLAPPED_LAG = 2  # decode publishes until the overlapped host can read one (SGLang's pinned ring)

_RANGES = {
    "max_running_requests": (1, 1 << 16),
    "chunked_prefill_size": (1, 1 << 20),
    "max_prefill_tokens": (1, 1 << 20),
    "replicas": (1, 256),
}


@dataclass(frozen=True)
class EngineSettings:
    """Settings of every engine replica.

    max_running_requests, chunked_prefill_size: None takes what SGLang resolves for model, policy and GPU memory
    (`simulator.engine.server`), and more running requests where more are in flight.
    schedule: None takes overlapped where the policy allows it and synchronous where it does not. Mixed prefill and
    decode steps are off, as SGLang has them by default. kv_tokens: as a server with the draft reports it; None takes
    the profile's. dp_attention: the replicas are ranks of one model that step together (`simulator.engine.lockstep`)
    instead of independent engines.
    prefill_elsewhere_s: the replicas are decode servers (SGLang's disaggregation): a request's first token and its KV
    come so many seconds after it was sent; None: the replicas prefill themselves. prefix_cache: where the trace says
    what prompts share, a replica keeps and finds it (SGLang's radix cache); decode servers never do.
    """

    max_running_requests: int | None = None
    chunked_prefill_size: int | None = None
    max_prefill_tokens: int = 16384
    kv_tokens: int | None = None
    schedule: str | None = None
    replicas: int = 1
    router: str = "round-robin"
    dp_attention: bool = False
    prefill_elsewhere_s: float | None = None
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name.replace('_', '-')}={value} is refused, expected {low}..{high}")
        if self.kv_tokens is not None and self.kv_tokens < 1:
            raise InputError(f"kv-tokens={self.kv_tokens} is refused, expected at least 1")
        if self.schedule not in (None, *SCHEDULES):
            raise InputError(f"schedule '{self.schedule}' is unknown, expected one of {', '.join(SCHEDULES)}")
        if self.router not in ROUTERS:
            raise InputError(f"router '{self.router}' is unknown, expected one of {', '.join(ROUTERS)}")
        if self.dp_attention and self.replicas == 1:
            raise InputError("dp-attention is refused with one rank, expected replicas of 2 or more")
        self._check_decode_server()

    def _check_decode_server(self) -> None:
        delay = self.prefill_elsewhere_s
        if delay is None:
            return
        if not 0 <= delay <= 3600:
            raise InputError(f"prefill elsewhere:{1e3 * delay:g} is refused, expected 0..3600000 ms")
        if self.dp_attention:
            raise InputError("prefill elsewhere is refused with dp-attention, expected independent replicas")

    def schedule_for(self, policy: Policy) -> str:
        """The schedule that runs this policy; an overlapped one cannot serve a live rule or fresh survivals."""
        needs_host = policy.live or 0 < policy.min_lag < OVERLAPPED_LAG
        if self.schedule is None:
            return "synchronous" if needs_host else "overlapped"
        if self.schedule == "overlapped" and needs_host:
            why = "decides on this step's survivals" if policy.live else "uses survivals one step old"
            raise InputError(
                f"policy '{policy.name}' {why}, which the overlapped schedule does not have in time; "
                "expected schedule synchronous or no-overlap"
            )
        return self.schedule

    def stated(self) -> dict[str, object]:
        """All settings in words, printed with every result."""
        return asdict(self)
