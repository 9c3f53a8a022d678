"""Flags that say what is drafted, and how often it is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy
from simulator.blocks.confidence import CALIBRATIONS, ERRORS, SPREADS, Confidence
from simulator.blocks.drafters import ALIASES, DEFAULT_DRAFTER, Drafter, choose_drafter
from simulator.engine.recorded_load import RecordedLoad
from simulator.flags.values import key_values
from simulator.inputs import Acceptance
from simulator.traces import Trace

_DRAFTER = (
    f"{', '.join(ALIASES)}, none, or a name that `dspark drafters` lists (default: {DEFAULT_DRAFTER}; not with "
    "records); with --acceptance the kind of drafter; several, such as mtp1,dspark,none (or all), are compared at "
    "matched speed and throughput with the first"
)
_ACCEPTANCE = (
    "your own: 0.82,0.67,0.55 by position (conditional), prefix:0.82,0.55,0.30 (survivals), or a file by domain, of "
    "vLLM's acceptance histograms or of `dspark eval`"
)
_CONFIDENCE = (
    "how far confidences are off: sts (default: ECE about 1 %), raw (about 5 %), calibrated (0), online (no head: "
    f"learned from outcomes); then {', '.join(f'{name}=' for name in (*SPREADS, *ERRORS))}"
)
PANEL = "Acceptance"
HEADLINE = ("mtp1", "dspark", "dflash", "eagle3", "none")
"""`--drafter all`: the paper's kinds; the first is what the others are compared with."""


@dataclass(frozen=True)
class AcceptanceFlags:
    """What is drafted, how often it is accepted, and what is known of it beforehand."""

    drafter: Annotated[str | None, typer.Option(help=_DRAFTER, rich_help_panel=PANEL)] = None
    acceptance: Annotated[str | None, typer.Option(help=_ACCEPTANCE, rich_help_panel=PANEL)] = None
    gamma: Annotated[
        int | None,
        typer.Option(
            "--gamma",
            "--speculative-dspark-block-size",
            help="draft block size, or positions of recorded blocks (default: the drafter's)",
            rich_help_panel=PANEL,
        ),
    ] = None
    confidence: Annotated[str | None, typer.Option(help=_CONFIDENCE, rich_help_panel=PANEL)] = None

    @property
    def drafters(self) -> tuple[str, ...]:
        """The drafters that are compared; one or none where they are not. Errors: InputError."""
        if self.drafter is None:
            return ()
        names = HEADLINE if self.drafter == "all" else tuple(name.strip() for name in self.drafter.split(","))
        if len(names) == 1:
            return names
        if len(set(names)) < len(names):
            raise InputError(f"--drafter {self.drafter} is refused, expected every drafter once")
        for flag, value in {"acceptance": self.acceptance, "gamma": self.gamma}.items():
            if value is not None:
                raise InputError(f"--{flag} does nothing with several drafters, which have their own: give one of them")
        return names

    def read_each(
        self, requests: Trace | RecordedLoad, domains: str | None
    ) -> dict[str, tuple[Acceptance, dict[str, float] | None]]:
        """`read` for every one of several drafters: what says nothing to one of them must say something to another."""
        if isinstance(requests, RecordedLoad):
            raise InputError("--drafter does nothing with records, which say it themselves")
        known = {name: choose_drafter(name) for name in self.drafters}
        if self.confidence is not None and not any(each.has_confidence for each in known.values()):
            raise InputError(f"--confidence {self.confidence} does nothing here: no drafter has a confidence head")
        if domains is not None and not any(each.knows_domains for each in known.values()):
            raise InputError("--domains does nothing here: every drafter is the same in every domain")
        return {
            name: replace(self, drafter=name, confidence=self.confidence if each.has_confidence else None).read(
                requests, domains if each.knows_domains else None
            )
            for name, each in known.items()
        }

    def read(self, requests: Trace | RecordedLoad, domains: str | None) -> tuple[Acceptance, dict[str, float] | None]:
        """The acceptance, and the shares of `--domains`. Errors: InputError."""
        if isinstance(requests, RecordedLoad):
            given = {"drafter": self.drafter, "acceptance": self.acceptance}
            for flag, value in {**given, "domains": domains, "confidence": self.confidence}.items():
                if value is not None:
                    raise InputError(f"--{flag} does nothing with records, which say it themselves")
            return Acceptance(gamma=self.gamma), None
        drafter = choose_drafter(self.drafter, self.acceptance)
        mix = domain_mix(domains, requests, drafter)
        head = confidence_model(self.confidence, drafter)
        return Acceptance(self.drafter, self.acceptance, self.gamma, head), mix


def domain_mix(text: str | None, trace: Trace, drafter: Drafter) -> dict[str, float] | None:
    """Shares of the domains, normalised; refused where the trace has its own or the drafter knows no difference."""
    if text is None:
        return None
    if not drafter.knows_domains:
        raise InputError(f"--domains does nothing here: drafter '{drafter.name}' is the same in every domain")
    if trace.domain is not None:
        raise InputError("--domains does nothing here: the trace has a domain for every request")
    mix = key_values("--domains", text, drafter.domains)
    if any(share < 0 for share in mix.values()) or sum(mix.values()) <= 0:
        raise InputError(f"--domains {text} is refused, expected shares that are not negative and not all 0")
    total = sum(mix.values())
    return {name: mix.get(name, 0.0) / total for name in drafter.domains}


def confidence_model(text: str | None, drafter: Drafter) -> Confidence | None:
    """The confidence model; what a drafter without a confidence head does not have is refused."""
    if text is None:
        return None
    calibration, values = _confidence(text)
    if not drafter.has_confidence and calibration != "online" and (calibration or set(values) & set(ERRORS)):
        raise InputError(
            f"--confidence {text} does nothing here: drafter '{drafter.name}' has no confidence head, expected online "
            f"or {', '.join(SPREADS)}"
        )
    return Confidence.of(calibration or "sts", **values)


def refuse_unread_confidence(policies: Sequence[Policy], text: str | None) -> None:
    """What a head reports, where no policy looks at it, is an error."""
    if text is None or any(policy.name not in ("none", "fixed") for policy in policies):
        return
    calibration, values = _confidence(text)
    reported = [name for name in (calibration, *sorted(values)) if name in (*CALIBRATIONS, *ERRORS)]
    if reported:
        raise InputError(f"--confidence {reported[0]} does nothing here: none of the policies looks at confidences")


def _confidence(text: str) -> tuple[str, dict[str, float]]:
    """(one of `CALIBRATIONS` or nothing, the values after it)."""
    first, _, rest = text.partition(",")
    if "=" in first:
        return "", key_values("--confidence", text, (*SPREADS, *ERRORS))
    if first.strip() not in CALIBRATIONS:
        names = f"{', '.join(CALIBRATIONS)}, or {', '.join(f'{name}=NUMBER' for name in (*SPREADS, *ERRORS))}"
        raise InputError(f"--confidence: '{first}' is refused, expected {names}")
    return first.strip(), key_values("--confidence", rest or None, (*SPREADS, *ERRORS))
