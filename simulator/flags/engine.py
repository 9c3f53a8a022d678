"""Flags that say what serves a load, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from sglang_dspark.cost import TERMS, StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy
from simulator.engine.recorded_load import RecordedLoad
from simulator.engine.settings import ROUTERS, SCHEDULES, EngineSettings
from simulator.flags.values import key_values
from simulator.inputs import Engine, find_cost
from simulator.traces import Trace

PANEL = "Engine"
_PRICELESS = ("none", "fixed", "threshold", "schedule", "tetris")


@dataclass(frozen=True)
class EngineFlags:
    """What serves the load. Names are SGLang's where the thing is the same."""

    profile: Annotated[
        str,
        typer.Option(
            help="what the engine costs: a name (see `dspark profiles`), a file, or a folder of records",
            rich_help_panel=PANEL,
        ),
    ]
    policy_profile: Annotated[
        str | None, typer.Option(help="what the policies believe (default: --profile)", rich_help_panel=PANEL)
    ] = None
    cost: Annotated[
        str | None, typer.Option(help=f"override cost terms: {', '.join(TERMS)}", rich_help_panel=PANEL)
    ] = None
    force_diagonal: Annotated[
        bool, typer.Option("--force-diagonal", help="price off-diagonal with a diagonal table", rich_help_panel=PANEL)
    ] = False
    schedule: Annotated[
        str | None, typer.Option(help=f"{', '.join(SCHEDULES)} (default: by policy)", rich_help_panel=PANEL)
    ] = None
    graphs: Annotated[
        str | None,
        typer.Option(
            "--graphs",
            "--cuda-graph-bs",
            help="whose CUDA graphs: sglang (default), profile, or batch sizes such as 1,2,4,8",
            rich_help_panel=PANEL,
        ),
    ] = None
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            help="GiB of one GPU: SGLang sets graphs and chunk by it (default: the profile's)", rich_help_panel=PANEL
        ),
    ] = None
    tp: Annotated[
        int | None,
        typer.Option("--tp", "--tp-size", help="tensor-parallel size (default: the profile's)", rich_help_panel=PANEL),
    ] = None
    max_running_requests: Annotated[
        int | None,
        typer.Option(
            help="default: SGLang's or as many as are in flight, or what the records say", rich_help_panel=PANEL
        ),
    ] = None
    chunked_prefill_size: Annotated[
        int | None,
        typer.Option(help="tokens of a prefill chunk (default: SGLang's by GPU memory)", rich_help_panel=PANEL),
    ] = None
    max_prefill_tokens: Annotated[
        int | None, typer.Option(help="tokens of a prefill step (default: 16384)", rich_help_panel=PANEL)
    ] = None
    prefill: Annotated[
        str | None,
        typer.Option(help="elsewhere[:MS]: a decode server, KV comes so many ms after sending", rich_help_panel=PANEL),
    ] = None
    no_prefix_cache: Annotated[
        bool,
        typer.Option(
            "--disable-radix-cache",
            "--no-prefix-cache",
            help="keep no prefixes; for traces with hash_ids",
            rich_help_panel=PANEL,
        ),
    ] = False
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            "--kv-tokens",
            "--max-total-tokens",
            help="KV capacity of a replica with the draft (default: the profile's)",
            rich_help_panel=PANEL,
        ),
    ] = None
    replicas: Annotated[
        int,
        typer.Option("--replicas", "--dp-size", help="data-parallel engine replicas", rich_help_panel=PANEL),
    ] = 1
    router: Annotated[
        str | None, typer.Option(help=f"{' or '.join(ROUTERS)}; needs --replicas", rich_help_panel=PANEL)
    ] = None
    dp_attention: Annotated[
        bool,
        typer.Option(
            "--dp-attention",
            "--enable-dp-attention",
            help="replicas are ranks that step together and share a tier",
            rich_help_panel=PANEL,
        ),
    ] = False

    def engine(self, requests: Trace | RecordedLoad) -> Engine:
        """The engine; flags that would do nothing are refused (InputError)."""
        if self.router is not None and self.replicas == 1:
            raise InputError("--router does nothing with one replica: give --replicas 2 or more")
        terms = key_values("--cost", self.cost, TERMS)
        if self.kv_tokens is not None and "kv_tokens" in terms:
            raise InputError("--cost kv_tokens does nothing with --kv-tokens: give one of them")
        if self.force_diagonal and not any(find_cost(name).diagonal for name in self._names):
            raise InputError("--force-diagonal does nothing here: no profile was measured only at B = R (1 + gamma)")
        return Engine(
            self._model(self.profile, terms),
            None if self.policy_profile is None else self._model(self.policy_profile, {}),
            self._settings(requests),
            _graphs(self.graphs),
            self.gpu_memory,
            self.tp,
        )

    def refuse_unread(self, policies: list[Policy]) -> None:
        """Beliefs that no policy reads are an error."""
        if self.policy_profile is not None and all(policy.name in _PRICELESS for policy in policies):
            raise InputError("--policy-profile does nothing here: none of the policies looks at step costs")

    @property
    def _names(self) -> list[str]:
        return [name for name in (self.profile, self.policy_profile) if name is not None]

    def _model(self, name: str, terms: dict[str, float]) -> StepCost:
        cost = find_cost(name, force_diagonal=self.force_diagonal)
        return cost.with_terms(**terms) if terms else cost

    def _settings(self, requests: Trace | RecordedLoad) -> EngineSettings:
        """The flags that were given, over what records say of their server, over SGLang's defaults."""
        known = requests.engine if isinstance(requests, RecordedLoad) else EngineSettings()
        flags: dict[str, float | str | bool | None] = {
            "prefill_elsewhere_s": self._elsewhere_s(),
            "max_running_requests": self.max_running_requests,
            "chunked_prefill_size": self.chunked_prefill_size,
            "max_prefill_tokens": self.max_prefill_tokens,
            "kv_tokens": self.kv_tokens,
            "schedule": self.schedule,
            "replicas": self.replicas,
            "router": self.router,
            "dp_attention": self.dp_attention or None,
            "prefix_cache": False if self.no_prefix_cache else None,
        }
        return replace(known, **{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]

    def _elsewhere_s(self) -> float | None:
        """Seconds of `--prefill elsewhere[:MS]`; the flags of a server that prefills itself then do nothing."""
        if self.prefill is None:
            return None
        word, colon, delay = self.prefill.partition(":")
        try:
            seconds = float(delay) / 1e3 if colon else 0.0
        except ValueError:
            seconds = math.nan
        if word != "elsewhere" or not 0 <= seconds < math.inf:
            raise InputError(f"--prefill {self.prefill} is refused, expected elsewhere or elsewhere:MILLISECONDS")
        for name in ("chunked_prefill_size", "max_prefill_tokens"):
            if getattr(self, name) is not None:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} does nothing with --prefill elsewhere, where nothing is prefilled")
        return seconds


def _graphs(text: str | None) -> str | list[int] | None:
    """`--graphs`: a word, or batch sizes."""
    if text is None or text.isalpha():
        return text
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise InputError(f"--graphs '{text}' is refused, expected sglang, profile or sizes such as 1,2,4,8") from None
