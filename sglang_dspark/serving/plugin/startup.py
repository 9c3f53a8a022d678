"""What happens between parsing our flags and starting the schedulers: the ragged-verify mode and early refusals.

Everything that can be refused is refused here, in the launching process, with one sentence and exit status 2.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.policies.parse import load_policy_meta
from sglang_dspark.serving.base.contract import TESTED, in_range
from sglang_dspark.serving.base.options import ATTRIBUTE, ServingOptions, options_of, resolve
from sglang_dspark.serving.base.refusal import leave
from sglang_dspark.serving.plugin.taking_part import (
    CAP_ACCEPT,
    COMPACT,
    STATIC,
    not_served,
    verifying_backend,
    why_not,
    why_not_compact,
    why_not_under_graphs,
)
from sglang_dspark.serving.recording import arrivals

RESOLUTION_STEP = "handle_speculative_decoding"
logger = logging.getLogger(__name__)

MODE_VARIABLE = "SGLANG_RAGGED_VERIFY_MODE"

_CHOSEN_BY_US = "_dspark_chose_mode"


def prepare(record: Any, options: ServingOptions) -> bool:
    """Right after parsing: refuse what is already known to be wrong and choose the verify mode.

    False: our flags have no effect on this server, which the user allowed; nothing was touched.
    """
    try:
        check_algorithm(record)
        if not takes_part(record, options):
            return False
        _check_version()
        resolve(options, sps_table=record.speculative_dspark_sps_table_path)
    except InputError as error:
        raise leave(error) from None
    if options.record is not None:
        arrivals.forward()
    given = os.environ.get(MODE_VARIABLE)
    if given == STATIC:
        raise leave(f"{MODE_VARIABLE}=static builds no confidence head: unset it, or drop the DSpark flags")
    if given is None:
        # Model-specific handlers read the mode before the attention backend is known; `settle` may still lower it.
        os.environ[MODE_VARIABLE] = COMPACT
        setattr(record, _CHOSEN_BY_US, True)
    return True


def takes_part(config: Any, options: ServingOptions) -> bool:
    """Whether our worker serves this server. InputError where it does not and nobody said that this is all right."""
    reason = why_not(config)
    if reason is None:
        return True
    if not options.if_possible:
        raise InputError(not_served(reason))
    logger.warning("sglang-dspark: %s: SGLang's own planner serves, and the DSpark flags have no effect", reason)
    return False


def settle(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Wraps SGLang's speculative step: the mode follows the attention backend, gamma is checked after it."""
    options = options_of(server_args)
    if not options.active:
        previous(server_args)
        return
    from sglang.srt.arg_groups.overrides import resolving_view

    from sglang_dspark.serving.base import hardware, start_line
    from sglang_dspark.serving.control import http

    config = resolving_view(server_args)
    try:
        if not takes_part(config, options):  # SGLang's own resolution has brought it about
            _step_aside(server_args)
            previous(server_args)
            return
        _choose_mode(server_args)
        previous(server_args)
        if config.speculative_use_block_verification:
            raise InputError("block verification changes what survival means: it is refused with scheduling policies")
        if config.speculative_dspark_align_verify_tokens_to_graph_tier:
            raise InputError(
                "filling the graph tier is the policy's business here: use a policy such as hull:fill=true"
            )
        under_graphs = why_not_under_graphs(config) if os.environ.get(MODE_VARIABLE) == COMPACT else None
        if under_graphs is not None:
            raise InputError(under_graphs)
        gamma = int(config.speculative_num_draft_tokens) - 1
        resolved = resolve(options, gamma, config.speculative_dspark_sps_table_path)
        check_draft(config.speculative_draft_model_path, config.speculative_dspark_confidence_sts_path, gamma)
        here = hardware.launcher_hardware(int(config.base_gpu_id or 0))
        start_line.check_hardware(resolved.cost, options, here)
        tuned = tuned_elsewhere(options.policy, gamma, config.max_running_requests)
    except InputError as error:
        raise leave(error) from None
    if tuned:
        logger.warning("sglang-dspark: %s", tuned)
    if config.tokenizer_worker_num > 1:
        logger.warning("sglang-dspark: with several tokenizer workers /dspark/policy is not served; flags decide")
        return
    http.serve(resolved, gamma)


def tuned_elsewhere(policy: str | None, gamma: int, max_running_requests: int | None) -> str:
    """Where a policy file was tuned for another server than this one; empty where it was not, or does not say."""
    if policy is None or not policy.endswith(".json"):
        return ""
    meta = load_policy_meta(Path(policy))
    here = {"gamma": gamma, "max_running_requests": max_running_requests}
    known = {key: value for key, value in here.items() if value is not None and key in meta}
    other = [f"{key} {meta[key]} (here {value})" for key, value in known.items() if value != meta[key]]
    return f"policy file {policy} was tuned for {' and '.join(other)}: its gain was measured there" if other else ""


def _step_aside(server_args: Any) -> None:
    """Undo what `prepare` did: SGLang's own worker serves as if our flags were not there."""
    setattr(server_args, ATTRIBUTE, None)
    if getattr(server_args, _CHOSEN_BY_US, False):
        os.environ.pop(MODE_VARIABLE, None)


def _choose_mode(server_args: Any) -> None:
    """Compact where the backend that verifies can, else cap-accept; a mode that the user gave and cannot work is an
    InputError."""
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.arg_groups.overrides import resolved_view

    config = resolved_view(server_args)
    backend = verifying_backend(config)
    chosen_by_us = getattr(server_args, _CHOSEN_BY_US, False)
    if not chosen_by_us and os.environ.get(MODE_VARIABLE) != COMPACT:
        return
    reason = why_not_compact(config, backend, model_config_of(server_args))
    if not chosen_by_us and reason is not None:
        raise InputError(f"{MODE_VARIABLE}=compact cannot work here: {reason}; unset it, or set {CAP_ACCEPT}")
    if chosen_by_us and reason is not None:
        logger.warning("sglang-dspark: mode %s: %s", CAP_ACCEPT, reason)
        os.environ[MODE_VARIABLE] = CAP_ACCEPT


def check_draft(draft_path: str | None, sts_path: str | None, gamma: int) -> None:
    """Refuse a draft that says it has no confidence head, and a calibration fitted for another block size."""
    import msgspec

    config_file = os.path.join(draft_path or "", "config.json")
    if os.path.isfile(config_file):
        with open(config_file, "rb") as file:
            config = msgspec.json.decode(file.read())
        nested = config.get("dspark_config") or config.get("dflash_config") or {}
        if config.get("enable_confidence_head", nested.get("enable_confidence_head", True)) is False:
            raise InputError(f"draft {draft_path} has no confidence head (enable_confidence_head is false)")
    if sts_path:
        with open(sts_path, "rb") as file:
            temperatures = msgspec.json.decode(file.read()).get("temperatures", [])
        if len(temperatures) != gamma:
            raise InputError(
                f"calibration {sts_path} was fitted for gamma={len(temperatures)}, expected the draft's gamma={gamma}"
            )


def check_algorithm(record: Any) -> None:
    if (record.speculative_algorithm or "").upper() != "DSPARK":
        given = record.speculative_algorithm or "none"
        raise InputError(f"the DSpark flags need --speculative-algorithm DSPARK, and it is {given}")


def _check_version() -> None:
    from importlib.metadata import version

    found = version("sglang")
    if not in_range(found):
        raise InputError(
            f"this release serves sglang {TESTED[0]} to {TESTED[-1]} and found {found}: install one of them"
        )
