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
from sglang_dspark.policies.spec import load_policy_meta
from sglang_dspark.serving.base.contract import SUPPORTED
from sglang_dspark.serving.base.options import ServingOptions, options_of, resolve
from sglang_dspark.serving.base.refusal import leave
from sglang_dspark.serving.recording import arrivals

RESOLUTION_STEP = "handle_speculative_decoding"
logger = logging.getLogger(__name__)

MODE_VARIABLE = "SGLANG_RAGGED_VERIFY_MODE"
COMPACT, CAP_ACCEPT, STATIC = "compact", "cap-accept", "static"

_CHOSEN_BY_US = "_dspark_chose_mode"

RAGGED_BACKENDS = ("fa3", "fa4", "trtllm_mha", "trtllm_mla", "dsv4")
"""Attention backends of SGLang that verify ragged blocks in graphs; `ragged_backends` adds what this machine has."""


def prepare(record: Any, options: ServingOptions) -> None:
    """Right after parsing: refuse what is already known to be wrong and choose the verify mode."""
    try:
        check_algorithm(record)
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


def settle(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Wraps SGLang's speculative step: the mode follows the attention backend, gamma is checked after it."""
    options = options_of(server_args)
    if not options.active:
        previous(server_args)
        return
    from sglang.srt.arg_groups.model_override_base import use_mla_backend
    from sglang.srt.arg_groups.overrides import attention_backends_of, resolved_view, resolving_view

    from sglang_dspark.serving.base import start_line
    from sglang_dspark.serving.control import http

    _, backend = attention_backends_of(resolved_view(server_args))
    if getattr(server_args, _CHOSEN_BY_US, False) and backend is not None:
        # SGLang's FlashInfer backend for MLA models verifies ragged blocks, its other one does not.
        mla = backend == "flashinfer" and use_mla_backend(server_args)
        os.environ[MODE_VARIABLE] = COMPACT if mla or backend in ragged_backends() else CAP_ACCEPT
    previous(server_args)
    config = resolving_view(server_args)
    try:
        if config.speculative_use_block_verification:
            raise InputError("block verification changes what survival means: it is refused with scheduling policies")
        if config.speculative_dspark_align_verify_tokens_to_graph_tier:
            raise InputError(
                "filling the graph tier is the policy's business here: use a policy such as hull:fill=true"
            )
        gamma = int(config.speculative_num_draft_tokens) - 1
        resolved = resolve(options, gamma, config.speculative_dspark_sps_table_path)
        check_draft(config.speculative_draft_model_path, config.speculative_dspark_confidence_sts_path, gamma)
        start_line.check_hardware(resolved.cost, options, start_line.launcher_hardware())
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


def ragged_backends() -> tuple[str, ...]:
    """Attention backends that serve compact verification here."""
    from sglang_dspark.serving import cpu

    on_cpu = ("torch_native",) if cpu.activate() is not None else ()
    return (*RAGGED_BACKENDS, *on_cpu, "flashinfer")


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
    if found != SUPPORTED:
        raise InputError(f"this release serves sglang {SUPPORTED} and found {found}: install that version")
