"""Reads a running server and says what is on, what it gains, what is wrong and what to do about it.

Everything comes from `/server_info`; nothing is sent to the model and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sglang_dspark.live.client import Server

Level = Literal["good", "note", "warning", "problem"]

ENOUGH_STEPS = 200
"""Fewer decode steps than that are no evidence."""

CALIBRATED = 0.05
"""Expected calibration error up to which confidences are taken at their word."""

_LATE, _CERTAIN, _DECIDING = 0.02, 0.02, 0.05  # shares that are worth a word


@dataclass(frozen=True)
class Finding:
    """key: a stable name for programs. says: what is the case. do: what to do about it, empty where nothing is."""

    key: str
    level: Level
    says: str
    do: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """on: what decides, in words. figures: what it was concluded from. One a replica."""

    replica: int
    on: str
    figures: dict[str, float | None]
    findings: list[Finding]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def healthy(self) -> bool:
        """Nothing is a problem or worth a warning."""
        return all(finding.level in ("good", "note") for finding in self.findings)


def examine(server: Server) -> list[Diagnosis]:
    """One diagnosis a replica. Errors: InputError where no SGLang server answers."""
    info = server.get("/server_info")
    states = server.states() if not isinstance(info, dict) or "internal_states" not in info else info["internal_states"]
    return [diagnosed(number, info, state.get("dspark")) for number, state in enumerate(states)]


def diagnosed(replica: int, info: dict[str, Any], state: dict[str, Any] | None) -> Diagnosis:
    """The diagnosis of one replica. info: /server_info. state: what our worker shows in it, None without it."""
    if state is None:
        return Diagnosis(replica, _upstreams(info), {}, [_not_ours(info)])
    found = figures(state)
    on = (
        f"policy {state['policy']} ({state['class']}, {'lossless' if state['lossless'] else 'NOT lossless'}), schedule "
        f"{state['schedule']}, mode {state['mode']}, gamma {state['gamma']}, since decode step {state['since_step']}"
    )
    findings = [finding for check in _CHECKS for finding in check(info, state, found)]
    order = ("problem", "warning", "note", "good")
    return Diagnosis(replica, on, found, sorted(findings, key=lambda finding: order.index(finding.level)))


def figures(state: dict[str, Any]) -> dict[str, float | None]:
    """What the server has measured of itself; None where it has measured nothing."""
    counts = state["counters"]

    def share(part: str, whole: str) -> float | None:
        return counts[part] / counts[whole] if counts.get(whole) and part in counts else None

    waste, gain = share("accepted_tokens", "verified_tokens"), None
    own, everything = (_rate(counts, name) for name in ("priced", "priced_everything"))
    if own and everything:
        gain = own / everything - 1
    reasons = counts["steps_by_reason"]
    steps = counts["decode_steps"] or None
    calibration = state.get("confidences") or {}
    return {
        "decode_steps": counts["decode_steps"],
        "accept_length": counts.get("mean_accept_length"),
        "verified_share": share("verified_tokens", "drafted_tokens"),
        "wasted_share": None if waste is None else 1 - waste,
        "expected_over_accepted": share("expected_tokens", "accepted_tokens"),
        "calibration_error": calibration.get("error"),
        "calibration_bias": calibration.get("bias"),
        "certain_share": share("certain_confidences", "drafted_tokens"),
        "late_share": reasons["late"] / steps if steps else None,
        "fault_share": (reasons["fault"] + counts.get("fallback_steps", 0)) / steps if steps else None,
        "step_s": share("timed_s", "timed_steps"),
        "decision_s": share("decide_s", "decode_steps"),
        "tokens_per_s": share("timed_committed", "timed_s"),
        "gain_over_verifying_everything": gain,
        "drift": (state.get("drift") or {}).get("measured_over_predicted"),
    }


def _rate(counts: dict[str, Any], name: str) -> float | None:
    seconds = counts.get(f"{name}_s")
    return counts[f"{name}_tokens"] / seconds if seconds else None


def _upstreams(info: dict[str, Any]) -> str:
    algorithm = info.get("speculative_algorithm") or "no speculation"
    return f"{algorithm}, by SGLang {info.get('version', 'of an unknown version')} alone"


def _not_ours(info: dict[str, Any]) -> Finding:
    if (info.get("speculative_algorithm") or "").upper() == "DSPARK":
        do = "start it with a --speculative-dspark flag, such as --speculative-dspark-policy self-tuning"
        return Finding("no-policy", "problem", "no policy of this package decides on this server", do)
    do = "start it with --speculative-algorithm DSPARK, a draft model and --speculative-dspark-policy"
    return Finding("no-dspark", "problem", "this server does not run DSPARK", do)


Check = Callable[[dict[str, Any], dict[str, Any], dict[str, float | None]], Iterator[Finding]]


def _traffic(info: dict[str, Any], state: dict[str, Any], found: dict[str, float | None]) -> Iterator[Finding]:
    steps = int(found["decode_steps"] or 0)
    if steps < ENOUGH_STEPS:
        says = f"{steps} decode steps so far: figures below rest on little"
        yield Finding("little-traffic", "note", says, f"ask again after {ENOUGH_STEPS} decode steps under your load")


def _gain(info: dict[str, Any], state: dict[str, Any], found: dict[str, float | None]) -> Iterator[Finding]:
    length, verified, wasted = found["accept_length"], found["verified_share"], found["wasted_share"]
    if length is not None and verified is not None:
        lost = "" if wasted is None else f", {wasted:.0%} of what is verified is thrown away"
        says = (
            f"{length:.2f} tokens a step and request are kept (bonus included), {verified:.0%} of the drafts verified"
        )
        yield Finding("acceptance", "good", says + lost)
    trial = state.get("trial") or {}
    if trial.get("gain") is not None:
        words = {"reverted": "was taken back", "kept": "is kept"}.get(trial["verdict"], "is on trial")
        says = (
            f"{trial['policy']} {words}: {100 * trial['gain']:+.1f} +- {100 * trial['gain_error']:.1f} % tokens/s "
            f"against {trial['previous']}, measured at like load"
        )
        yield Finding("measured-gain", "good", says)
    gain = found["gain_over_verifying_everything"]
    if gain is None:
        return
    says = f"by the profile's prices {gain:+.1%} tokens/s against verifying every draft"
    if gain < -0.01:
        do = f"measure it: dspark ab --policy {state['policy']} --policy fixed:k={state['gamma']}"
        yield Finding("gain", "warning", says, do)
    else:
        yield Finding("gain", "good", says)


def _profile(info: dict[str, Any], state: dict[str, Any], found: dict[str, float | None]) -> Iterator[Finding]:
    name, origin, drift = state.get("profile"), state.get("provenance") or {}, found["drift"]
    measure = "dspark profile --url URL --out here.json, and restart with --speculative-dspark-profile here.json"
    if name is None:
        says = "no profile of step costs: the policy does not know what a token costs here, and no gain can be told"
        yield Finding("no-profile", "note", says, f"{measure}, or let the server measure: -profile auto")
        return
    if origin.get("foreign"):
        says = f"profile {name} was recorded on {origin['hardware']} and this is {state['hardware']}"
        yield Finding("foreign-profile", "problem", says, measure)
    if origin.get("estimate"):
        yield Finding("estimate", "warning", f"profile {name} is an estimate: nobody has measured these steps", measure)
    if (state.get("drift") or {}).get("holds") is False:
        says = f"profile {name} no longer holds: decode steps take {drift:.2f} times what it says"
        yield Finding("drift", "problem", says, measure)
    elif drift is not None:
        yield Finding("drift", "good", f"profile {name} holds: steps take {drift:.2f} times what it says")
    elif not found["step_s"]:
        yield Finding("drift", "note", f"profile {name}: no step has been timed yet")
    limit, span = (state.get("limits") or {}).get("max_running_requests"), origin.get("requests")
    if span and limit and span[1] > 1 and limit > 1.1 * span[1]:
        says = f"profile {name} was measured up to {span[1]} requests, and this server runs up to {limit}"
        yield Finding("beyond-profile", "note", says, measure)


def _confidences(info: dict[str, Any], state: dict[str, Any], found: dict[str, float | None]) -> Iterator[Finding]:
    sts, online = info.get("speculative_dspark_confidence_sts_path"), state.get("calibration")
    error, bias, certain = found["calibration_error"], found["calibration_bias"], found["certain_share"]
    fit = (
        "record under your load (--speculative-dspark-record DIR, -explore 0.02), then dspark calibrate DIR --out "
        "sts.json and restart with --speculative-dspark-confidence-sts-path sts.json; or use self-tuning"
    )
    how = "by STS" if sts else "online" if online else ""
    measured = "" if error is None else f", and they are off by {error:.3f} (ECE{_direction(bias)})"
    if not how:
        level: Level = "note" if error is not None and error <= CALIBRATED else "warning"
        yield Finding("uncalibrated", level, f"confidences are not calibrated (no STS){measured}", fit)
    elif error is not None and error > CALIBRATED:
        yield Finding("miscalibrated", "warning", f"confidences are calibrated {how}{measured}", fit)
    else:
        yield Finding("calibrated", "good", f"confidences are calibrated {how}{measured}")
    if certain is not None and certain > _CERTAIN:
        says = f"{certain:.0%} of the confidences are exactly 0 or 1: they order nothing"
        yield Finding("saturated", "warning", says, "look at the draft's confidence head; " + fit)


def _direction(bias: float | None) -> str:
    if bias is None or abs(bias) < 0.01:
        return ""
    return f", too sure by {bias:.3f}" if bias > 0 else f", not sure enough by {-bias:.3f}"


def _steps(info: dict[str, Any], state: dict[str, Any], found: dict[str, float | None]) -> Iterator[Finding]:
    for fault in state.get("faults") or [fault for rank in state.get("ranks", ()) for fault in rank.get("faults", ())]:
        says = f"{fault['what']} failed {fault['count']} time(s): {fault['first']}"
        yield Finding("fault", "problem", says, "read the server's log at its first failure, and report it")
    if found["fault_share"]:
        says = f"in {found['fault_share']:.1%} of the steps a fallback decided, because something raised"
        yield Finding("fallback", "problem", says, "read the server's log; switch to another policy meanwhile")
    if (found["late_share"] or 0.0) > _LATE:
        says = f"{found['late_share']:.1%} of the steps verified everything, because a copy from the device came late"
        yield Finding(
            "late", "warning", says, "look for load on the host's CPUs; --speculative-dspark-schedule synchronous waits"
        )
    if state.get("forced_fraction") is not None:
        says = f"SGLang's forced budget is on: {state['forced_fraction']:.0%} of all drafts, whatever the policy says"
        yield Finding("forced", "warning", says, f"dspark policy {state['policy']} ends it")
    if state["mode"] == "cap-accept":
        says = "mode cap-accept verifies everything and caps acceptance: it saves no compute"
        yield Finding(
            "cap-accept", "warning", says, "use an attention backend that verifies ragged blocks (fa3, flashinfer)"
        )
    if not state["lossless"]:
        yield Finding("lossy", "problem", "the output law is not the target's", "dspark policy hull")
    if str(state.get("decisions", "")).startswith("NumPy"):
        says = f"policies decide in {state['decisions']}: the same decisions, slower"
        yield Finding("numpy", "note", says, "see 'Compiled decisions' in docs/serving.md")
    decision, step = found["decision_s"], found["step_s"]
    if decision and step and decision > _DECIDING * step:
        says = f"deciding takes {1e3 * decision:.2f} ms of a step of {1e3 * step:.2f} ms on the host"
        yield Finding("overhead", "note", says, "the overlapped schedule hides it behind the device's work")
    recording = state.get("recording") or {}
    if recording.get("stalled"):
        yield Finding("recording", "warning", f"recording stands still: {recording.get('problem')}", "free its disk")


_CHECKS: tuple[Check, ...] = (_traffic, _gain, _profile, _confidences, _steps)
