"""What the user asked for with our flags, and the refusals that need nothing but these values (no sglang, no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, knows_depth, make_policy, needs_prices

Schedule = Literal["overlapped", "synchronous"]
Kernels = Literal["auto", "ours", "upstream"]
KERNELS: tuple[Kernels, ...] = ("auto", "ours", "upstream")
SCHEDULES: tuple[Schedule, ...] = ("overlapped", "synchronous")

DEFAULT_POLICY = "argmax:lag=2"
OVERLAPPED_LAG = 2
"""Publishes between a survival and its first use when the host runs ahead of the device."""


ATTRIBUTE = "_dspark_options"
"""Underscore attributes pass SGLang's write seal and are pickled with the record to every process."""


@dataclass(frozen=True)
class ServingOptions:
    """The plug-in's flags as given. `None` means not given.

    policy, shadow: policy text or JSON file. profile: name or file. schedule: when the decision is made.
    explore: chance that a step verifies everything, drawn before the step. record: folder for records of every step
    and request; record_text: with prompts and outputs; record_limit: what the
    folder may hold. kernels: whose GPU kernels run. if_possible: serve with SGLang's
    own planner where the flags can have no effect.
    """

    policy: str | None = None
    profile: str | None = None
    shadow: str | None = None
    schedule: Schedule | None = None
    allow_foreign_profile: bool = False
    allow_estimate: bool = False
    explore: float = 0.0
    record: str | None = None
    record_text: bool = False
    record_limit: str | None = None
    kernels: Kernels = "auto"
    if_possible: bool = False

    @property
    def active(self) -> bool:
        """Whether any flag was used; with none of them SGLang's own worker stays."""
        return self != ServingOptions(if_possible=self.if_possible)


def options_of(server_args: Any) -> ServingOptions:
    """The options that travel with a `ServerArgs` record."""
    return getattr(server_args, ATTRIBUTE, None) or ServingOptions()


DEFAULT_RECORD_LIMIT = "10GB"

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_LEAST_RECORDS = 10**7


def record_limit(options: ServingOptions) -> int:
    """Bytes of records that the folder may hold; InputError for another text than 500MB, 10GB or 1.5TB."""
    text = (options.record_limit or DEFAULT_RECORD_LIMIT).strip().lower()
    try:
        found = int(float(text[:-2]) * _UNITS[text[-2:]])
    except (KeyError, ValueError, OverflowError):
        found = -1
    if found < _LEAST_RECORDS:
        raise InputError(
            f"--speculative-dspark-record-limit {options.record_limit} is refused, expected a size from 10MB, such as "
            f"{DEFAULT_RECORD_LIMIT}"
        )
    return found


@dataclass(frozen=True)
class Resolved:
    """Options that were checked: everything the worker needs, ready to use. schedule: what it starts with; asked: what
    the flag says, None without it."""

    policy: Policy
    shadow: Policy | None
    cost: StepCost | None
    schedule: Schedule
    explore: float
    asked: Schedule | None = None

    def schedule_of(self, policy: Policy, present: Schedule | None = None) -> Schedule:
        """The schedule under which `policy` decides on this server.

        What was asked for at the start, where the policy can; else what it needs. One that decides under either by
        another rule keeps the `present` one.
        """
        if policy.live or 0 < policy.min_lag < OVERLAPPED_LAG:
            return "synchronous"
        either = policy.for_schedule(True) != policy.for_schedule(False)
        return self.asked or (present if either and present is not None else "overlapped")


def resolve(options: ServingOptions, gamma: int | None = None, sps_table: str | None = None) -> Resolved:
    """Policies, profile and schedule of `options`; `sps_table` is SGLang's own flag, used when no profile is given.

    Errors: InputError with one sentence for everything that the live engine does not serve.
    """
    cost = None
    source = options.profile or sps_table
    if source is not None:
        cost = load_profile(source, force_diagonal=options.allow_foreign_profile)
    _check_estimate(cost, options)
    if options.policy is None and cost is None:
        raise InputError(
            "the DSpark flags need a policy or a profile, expected --speculative-dspark-policy NAME or "
            "--speculative-dspark-profile NAME"
        )
    if not 0.0 <= options.explore <= 1.0:
        raise InputError(f"--speculative-dspark-explore {options.explore} is refused, expected a chance in 0..1")
    for flag, given in (("text", options.record_text), ("limit", options.record_limit is not None)):
        if given and options.record is None:
            raise InputError(f"--speculative-dspark-record-{flag} needs --speculative-dspark-record DIR")
    record_limit(options)
    policy = make_policy(options.policy or DEFAULT_POLICY)
    schedule = options.schedule or ("synchronous" if policy.live else "overlapped")
    check_policy(policy, schedule, cost, gamma)
    shadow = None
    if options.shadow is not None:
        shadow = make_policy(options.shadow)
        check_shadow(shadow, schedule, cost, gamma)
    return Resolved(policy, shadow, cost, schedule, options.explore, options.schedule)


def _check_estimate(cost: StepCost | None, options: ServingOptions) -> None:
    """An estimate decides on a live server only where that was asked for."""
    estimated = cost is not None and cost.is_estimate
    if cost is not None and estimated and not options.allow_estimate:
        raise InputError(
            f"profile '{cost.name}' is an estimate, not measured: measure one (--speculative-dspark-profile auto, or "
            "`dspark profile`), or add --speculative-dspark-allow-estimate"
        )
    if options.allow_estimate and not estimated:
        raise InputError("--speculative-dspark-allow-estimate does nothing: no estimated profile is given")


def check_policy(policy: Policy, schedule: Schedule, cost: StepCost | None, gamma: int | None) -> None:
    """Refuse (InputError) what the live engine must not or cannot run."""
    if not policy.drafts:
        raise InputError(
            f"policy '{policy.name}' has no drafter: restart without --speculative-algorithm, or use fixed:k=0"
        )
    if not policy.lossless:
        raise InputError(
            f"policy '{policy.name}' is not lossless and is refused by the live engine; the simulator runs it"
        )
    if schedule == "overlapped" and policy.live:
        raise InputError(
            f"policy '{policy.name}' reads this step's survivals: restart with "
            "--speculative-dspark-schedule synchronous"
        )
    _check_common(policy, schedule, cost, gamma)


def check_shadow(policy: Policy, schedule: Schedule, cost: StepCost | None, gamma: int | None) -> None:
    """Like `check_policy`, but a shadow changes nothing and may therefore be biased."""
    if knows_depth(policy) or not policy.drafts:
        raise InputError(f"shadow policy '{policy.name}' is refused: only the simulator can tell what it would do")
    _check_common(policy, schedule, cost, gamma)


def _check_common(policy: Policy, schedule: Schedule, cost: StepCost | None, gamma: int | None) -> None:
    if cost is None and needs_prices(policy):
        raise InputError(f"policy '{policy.name}' compares step times: give --speculative-dspark-profile NAME or FILE")
    if cost is not None:
        _check_diagonal(policy, cost, gamma)
    if schedule == "overlapped" and 0 < policy.min_lag < OVERLAPPED_LAG:
        raise InputError(
            f"policy '{policy.name}': lag={policy.min_lag} is not on the host before an overlapped step, expected at "
            f"least {OVERLAPPED_LAG}, or --speculative-dspark-schedule synchronous"
        )
    if gamma is not None:
        policy.check(gamma)


def _check_diagonal(policy: Policy, cost: StepCost, gamma: int | None) -> None:
    """A table of whole blocks decides nothing, and tells nothing of a server that drafts blocks of another gamma."""
    instead = "measure another one, or force it with --speculative-dspark-allow-foreign-profile"
    if cost.diagonal and needs_prices(policy):
        raise cost.off_diagonal(f"the decisions of policy '{policy.name}'", instead)
    if gamma is not None and not cost.holds_diagonal(gamma, gamma):
        raise cost.off_diagonal(f"the steps of a server that drafts {gamma}", instead)
