"""Flags, metrics and counters of the live server."""

from __future__ import annotations

import argparse
import inspect
import sys
from types import ModuleType
from typing import Any

import numpy as np

from pages.text import code, plain, table
from sglang_dspark import jit
from sglang_dspark.serving.base.steps import BatchView, SamplingView, StepDecision, StepRecord

_VARIABLES = {
    jit.SWITCH: "`0`: policies decide in NumPy, with the same results, and nothing is compiled.",
    jit.FOLDER: "Keeps compiled code. Default: `sglang-dspark/compiled` in `XDG_CACHE_HOME` or `~/.cache`.",
    "SGLANG_PLUGINS": "SGLang's own. Empty: SGLang as it is, without this package.",
}


class _Parser(argparse.ArgumentParser):
    """Keeps what is added to it, SGLang's flags aside."""


def server_page() -> str:
    from sglang_dspark.serving.base.steps import REASONS
    from sglang_dspark.serving.feedback.counters import Counters
    from sglang_dspark.serving.plugin.flags import add_flags

    parser = _Parser(add_help=False)
    add_flags(None, parser)
    rows = []
    for action in parser._actions:
        value = action.metavar or "|".join(action.choices or ()) or ("" if action.nargs == 0 else "VALUE")
        default = (
            ""
            if action.default in (None, False) or "Default" in (action.help or "")
            else f" Default: {action.default}."
        )
        rows.append([_flag(action.option_strings[0], value), plain((action.help or "") + default)])
    counted = [
        [code(name), kind, ", ".join(map(code, labels)), plain(text)] for name, kind, labels, text in prometheus()
    ]
    return "\n\n".join(
        [
            "# The server",
            "Flags of `python -m sglang.launch_server` beside SGLang's own. Any of them runs the sglang-dspark worker; "
            "with none of them SGLang's stays as it is.",
            table(["flag", ""], rows),
            "## Environment",
            "For the commands too; [what is compiled, and when](../serving.md#compiled-decisions).",
            table(["variable", ""], [[code(name), plain(text)] for name, text in _VARIABLES.items()]),
            "## Metrics in Prometheus",
            "With `--enable-metrics`, on the `/metrics` of the server. Labels are those of SGLang's own scheduler "
            "metrics (`model_name`, `engine_type`, `tp_rank`, ...), so that both join, and those below.",
            table(["metric", "kind", "labels", "what"], counted),
            "## Counters",
            "Under `dspark` in the internal states of `/server_info`, without `--enable-metrics` too. `dspark policy` "
            "and `GET /dspark/policy` show policy, ranks and faults.",
            plain(inspect.cleandoc(Counters.__doc__ or "")),
            ", ".join(code(name) for name in Counters().as_dict()) + ".",
            f"Reasons of a step (`steps_by_reason`, and the label `reason`): {', '.join(map(code, REASONS))}.",
        ]
    )


def _flag(name: str, value: str) -> str:
    """A flag and what it takes; a bar would end a table's cell."""
    return " ".join([code(name), " or ".join(map(code, value.split("|")))]).strip()


def _one_step() -> StepRecord:
    """A decode step of one request that drafts one token."""
    one, nothing = np.ones(1, dtype=np.int64), np.empty(0)
    sampling = SamplingView(one.astype(np.float32), one.astype(np.float32), one)
    return StepRecord(
        step=0,
        forward=0,
        began_s=0.0,
        rids=["r"],
        batch=BatchView(one, one),
        prefix_lengths=nothing.astype(np.int64),
        sampling=sampling,
        policy="fixed:k=1",
        carry=None,
        since_step=0,
        decision=StepDecision("policy", 1),
        lagged={},
        prefill_before=False,
        confidence=np.full((1, 1), 0.5, dtype=np.float32),
        lengths=one,
        accepted=one,
    )


def prometheus() -> list[tuple[str, str, list[str], str]]:
    """(name, kind, own labels, text) of every metric, from the very code that makes them, without prometheus_client."""
    from sglang_dspark.serving.feedback.metrics import PrometheusObserver

    found: list[tuple[str, str, list[str], str]] = []

    class Made:
        def __init__(self, name: str, text: str, labels: list[str], **more: Any) -> None:
            kind = type(self).__name__.lower()
            found.append((f"{name}_total" if kind == "counter" else name, kind, labels, text))

        def labels(self, *values: Any) -> Made:
            return self

        def inc(self, value: float = 1.0) -> None: ...

        set = observe = inc

    stub = ModuleType("prometheus_client")
    for kind in ("Counter", "Gauge", "Histogram"):
        setattr(stub, kind, type(kind, (Made,), {}))
    before = sys.modules.get("prometheus_client")
    sys.modules["prometheus_client"] = stub
    try:
        PrometheusObserver({}).on_step(_one_step())  # some appear with the first step
    finally:
        sys.modules.pop("prometheus_client")
        if before is not None:
            sys.modules["prometheus_client"] = before
    return sorted(found)
