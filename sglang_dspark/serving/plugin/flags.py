"""The plug-in's command-line flags: added to SGLang's parser, kept on its `ServerArgs`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang_dspark.serving.base.options import (
    ATTRIBUTE,
    DEFAULT_POLICY,
    DEFAULT_RECORD_LIMIT,
    KERNELS,
    SCHEDULES,
    ServingOptions,
)
from sglang_dspark.serving.base.refusal import leave

ADD_TARGET = "sglang.srt.server_args.ServerArgs.add_cli_args"
READ_TARGET = "sglang.srt.server_args.ServerArgs.from_cli_args"

_PREFIX = "speculative_dspark_"
_FIELDS = {
    "policy": "policy",
    "profile": "profile",
    "shadow_policy": "shadow",
    "schedule": "schedule",
    "allow_foreign_profile": "allow_foreign_profile",
    "allow_estimate": "allow_estimate",
    "explore": "explore",
    "record": "record",
    "record_text": "record_text",
    "record_limit": "record_limit",
    "kernels": "kernels",
    "if_possible": "if_possible",
}


def add_flags(result: Any, parser: argparse.ArgumentParser) -> None:
    """AFTER hook on `ServerArgs.add_cli_args`."""
    group = parser.add_argument_group(
        "DSpark policies (sglang-dspark)", "Any of these runs the sglang-dspark worker; without them SGLang's stays."
    )
    group.add_argument(
        "--speculative-dspark-policy",
        metavar="NAME[:k=v,..]|FILE.json",
        help="Which drafted tokens are verified, e.g. hull:fill=true, fixed:k=3, threshold:t=0.5. "
        f"Default with a profile: {DEFAULT_POLICY}.",
    )
    group.add_argument(
        "--speculative-dspark-profile",
        metavar="NAME|FILE|auto",
        help="Step-cost profile that policies price with; --speculative-dspark-sps-table-path is used when absent. "
        "auto measures this machine and model once, in minutes before the server starts, and keeps the result.",
    )
    group.add_argument(
        "--speculative-dspark-shadow-policy",
        metavar="NAME[:k=v,..]|FILE.json",
        help="Decides beside the live policy, changes nothing, is counted and logged.",
    )
    group.add_argument(
        "--speculative-dspark-schedule",
        choices=SCHEDULES,
        help="overlapped: the host decides from earlier steps while the device works; synchronous: this step's "
        "survivals decide before the verify launch. Default: what the policy needs.",
    )
    group.add_argument(
        "--speculative-dspark-allow-foreign-profile",
        action="store_true",
        help="Accept a profile recorded on other hardware, or one that cannot price off-diagonal decisions.",
    )
    group.add_argument(
        "--speculative-dspark-allow-estimate",
        action="store_true",
        help="Accept an estimated profile, whose steps nobody has measured.",
    )
    group.add_argument(
        "--speculative-dspark-explore",
        type=float,
        default=0.0,
        metavar="P",
        help="Chance that a step verifies everything, drawn before the step (lossless); yields uncensored blocks.",
    )
    group.add_argument(
        "--speculative-dspark-record",
        metavar="DIR",
        help="Record every decode step and request to rotating, compressed files in DIR, off the decode path.",
    )
    group.add_argument(
        "--speculative-dspark-record-text",
        action="store_true",
        help="Record prompts and outputs as well; without it no text is ever written.",
    )
    group.add_argument(
        "--speculative-dspark-record-limit",
        metavar="SIZE",
        help="What the record folder may hold, e.g. 500MB: its oldest record files, of earlier runs too, are removed "
        f"beyond it. Default: {DEFAULT_RECORD_LIMIT}.",
    )
    group.add_argument(
        "--speculative-dspark-kernels",
        choices=KERNELS,
        default=KERNELS[0],
        help="Whose kernels draft, accept and admit: auto measures both on a CUDA device and keeps the faster.",
    )
    group.add_argument(
        "--speculative-dspark-if-possible",
        action="store_true",
        help="Where these flags can have no effect (DP attention, PP, a PD prefill server, LoRA), serve with SGLang's "
        "own planner instead of refusing to start.",
    )


def read_flags(from_cli_args: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """AROUND hook on `ServerArgs.from_cli_args`: the record carries our values as well."""
    record = from_cli_args(cls, args)
    values = {ours: getattr(args, _PREFIX + flag) for flag, ours in _FIELDS.items() if hasattr(args, _PREFIX + flag)}
    options = ServingOptions(**values)
    if options.active:
        from sglang_dspark.serving.plugin import startup

        if options.profile == "auto" or _needs_measuring(options, record):
            options = _with_measured_profile(record, options)
        if startup.prepare(record, options):
            setattr(record, ATTRIBUTE, options)
    return record


def _needs_measuring(options: ServingOptions, record: Any) -> bool:
    """`self-tuning` needs no preparation: where no step costs are given, they are measured as for `auto`."""
    from sglang_dspark.errors import InputError
    from sglang_dspark.policies import SelfTuning, make_policy

    given = options.profile or getattr(record, "speculative_dspark_sps_table_path", None)
    try:
        return not given and options.policy is not None and isinstance(make_policy(options.policy), SelfTuning)
    except InputError:
        return False  # refused with its reason where the options are resolved


def _with_measured_profile(record: Any, options: ServingOptions) -> ServingOptions:
    from sglang_dspark.errors import InputError
    from sglang_dspark.serving.plugin import startup
    from sglang_dspark.serving.plugin.auto_profile import find_or_measure

    try:
        startup.check_algorithm(record)
        if not startup.takes_part(record, options):
            return options
        return replace(options, profile=find_or_measure(record, sys.orig_argv))
    except InputError as error:
        raise leave(error) from None
