"""The one line that the worker prints at start, and the check that a profile belongs to this machine."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_dspark.cost import StepCost, provenance
from sglang_dspark.cost.graphs import Machine, captured_batches, listed_batches
from sglang_dspark.errors import InputError
from sglang_dspark.jit import stated
from sglang_dspark.policies import policy_to_string
from sglang_dspark.serving.base.hardware import hardware_name, same_hardware
from sglang_dspark.serving.base.options import Resolved, ServingOptions


def is_foreign(cost: StepCost | None, here: str) -> bool:
    """Whether a profile says that it was recorded on other hardware; one that says nothing is not known to be."""
    recorded = None if cost is None else cost.meta.get("hardware")
    return bool(recorded) and not same_hardware(str(recorded), here)


def shown_of(cost: StepCost, here: str) -> dict[str, object]:
    """Where a profile comes from, and what is to be known of it on this machine; for a server's state."""
    kept = {key: cost.meta[key] for key in ("hardware", "model", "date", "how", "software") if cost.meta.get(key)}
    return {
        **kept,
        "form": cost.form,
        "estimate": cost.is_estimate,
        "foreign": bool(here) and is_foreign(cost, here),
        "requests": list(cost.measured_requests),
        "tokens": list(cost.measured_tokens),
    }


def check_hardware(cost: StepCost | None, options: ServingOptions, here: str | None) -> None:
    """Refuse a foreign profile unless it is allowed (InputError)."""
    if cost is not None and here is not None and is_foreign(cost, here) and not options.allow_foreign_profile:
        raise InputError(
            f"profile '{cost.name}' was recorded on {cost.meta['hardware']} and this is {here}: measure one here, or "
            "add --speculative-dspark-allow-foreign-profile"
        )


def unforeseen_graphs(
    batches: list[int], machine: Machine, *, limit: int | None, pool: int, width: int, alignment: int
) -> str:
    """Where the captured batch sizes are not those that the simulator predicts, in one line; empty if they are.

    limit: --max-running-requests as given. pool: size of the request pool. See `sglang_dspark.cost.graphs`.
    """
    listed = listed_batches(machine.graph_limit(limit), drafting=True)
    try:
        foreseen = captured_batches(listed, pool, width=width, alignment=alignment)
    except InputError:
        foreseen = ()
    if foreseen == tuple(batches):
        return ""
    memory = "unknown GPU memory" if machine.gpu_memory_gib is None else f"{machine.gpu_memory_gib:.1f} GiB a GPU"
    return (
        f"sglang-dspark: this server captured other CUDA graphs ({_sizes(batches)}) than the simulator expects of "
        f"SGLang with {memory}, TP {machine.tp} and {pool} requests ({_sizes(foreseen)}): simulate it with "
        f"--graphs {','.join(map(str, batches))}"
    )


def _sizes(batches: Sequence[int]) -> str:
    return f"{len(batches)} batch sizes up to {max(batches, default=0)}"


def start_line(resolved: Resolved, options: ServingOptions, mode: str, loop: str) -> str:
    """Policy, class, mode, profile and its provenance, lossless or not, compiled or not."""
    policy = resolved.policy
    parts = [
        f"policy {policy_to_string(policy)}",
        f"class {policy.kind}",
        "lossless" if policy.lossless else "NOT lossless",
        f"schedule {resolved.schedule}, {loop} loop",
        f"mode {mode}" + (" (verifies everything: saves no compute)" if mode == "cap-accept" else ""),
    ]
    if resolved.cost is None:
        parts.append("no profile")
    else:
        loud = ", ESTIMATE, NOT MEASURED (allowed)" if resolved.cost.is_estimate else ""
        loud += ", FOREIGN HARDWARE (allowed)" if is_foreign(resolved.cost, hardware_name()) else ""
        parts.append(f"profile {resolved.cost.name} ({provenance(resolved.cost)}{loud})")
        parts += [one.text for one in resolved.cost.assumptions if one.key == "estimate_error"]
        parts += [one.text for one in resolved.cost.assumptions if one.key == "diagonal_forced"]
    if resolved.shadow is not None:
        parts.append(f"shadow {policy_to_string(resolved.shadow)}")
    if resolved.explore:
        parts.append(f"explores {resolved.explore:g} of the steps")
    parts.append(f"decisions: {stated()}")
    return "sglang-dspark: " + "; ".join(parts)
