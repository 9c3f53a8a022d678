"""Which operations are ours on this device: tried at start, measured beside upstream's, put in place, taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from dspark_kernels.choose import Choice, Mode, Pair, choose_over, medians
from sglang.srt.speculative.dspark_components import dspark_draft, dspark_draft_sampler, dspark_verify

from sglang_dspark.serving.base import admission
from sglang_dspark.serving.base.contract import moved
from sglang_dspark.serving.base.faults import Faults
from sglang_dspark.serving.gpu.device_kernels.cases import CASES, CHECKED_ROWS, Case
from sglang_dspark.serving.gpu.device_kernels.contract import REPLACED
from sglang_dspark.serving.gpu.device_kernels.guarded import Guarded
from sglang_dspark.serving.gpu.device_kernels.operations import MarkovOperation

OPERATIONS = tuple(case.name for case in CASES)

_LEFT_FREE = 4
"""What an operation keeps may take one part in this many of the free memory: graphs are captured after it."""

_MOST_TRIAL_BYTES = 1 << 30


@dataclass
class Trial:
    """An operation that was tried: what was chosen, and ours where it is of use."""

    case: Case
    choice: Choice
    ours: Callable[..., Any] | None = None


def attempt(worker: Any, mode: Mode, faults: Faults) -> list[Trial]:
    """Build, check, warm and measure every operation on this worker's device. Never raises.

    worker: SGLang's DSPARK worker, models loaded. What cannot be built, gives other values than its reference, or does
    not fit the free memory is upstream's, with the reason; `mode` "auto" also measures, and keeps the faster one.
    """
    return [_tried(case(worker), mode, faults) for case in CASES]


def _tried(case: Case, mode: Mode, faults: Faults) -> Trial:
    try:
        reason = _reason_against(case, mode)
        if reason is not None:
            return Trial(case, Choice(case.name, "upstream", reason))
        with torch.no_grad():  # not inference mode, which would bind what is built to it
            return _built(case, mode, faults)
    except Exception as error:
        faults.note(f"kernel {case.name}", error, "SGLang's own runs")
        return Trial(case, Choice(case.name, "upstream", f"it failed at start: {type(error).__name__}"))
    finally:
        _free_cache(case.device)


def _reason_against(case: Case, mode: Mode) -> str | None:
    if mode == "upstream":
        return "asked for"
    changes = moved(REPLACED[case.name])
    if changes:
        return f"another SGLang: {'; '.join(changes)}"
    refusal = case.refusal()
    if refusal is not None:
        return refusal
    if mode == "auto" and case.device.type != "cuda":
        return f"nothing measured: {case.device.type} is no CUDA device"
    free = free_bytes(case.device)
    if free is not None and case.kept_bytes() > free // _LEFT_FREE:
        return f"{_mib(free)} are free and it keeps {_mib(case.kept_bytes())}"
    return None


def _built(case: Case, mode: Mode, faults: Faults) -> Trial:
    sizes = trial_sizes(case)
    if not sizes:
        return Trial(case, Choice(case.name, "upstream", f"too little memory is free to try it ({_mib_free(case)})"))
    ours = case.build()
    wrong = case.check(ours)
    if wrong:
        faults.note(f"kernel {case.name}", f"it differs from its reference: {wrong}", "SGLang's own runs")
        return Trial(case, Choice(case.name, "upstream", f"it differs from its reference: {wrong}"))
    case.warm(ours)
    choice = Choice(case.name, "ours", "asked for") if mode != "auto" else measured(case, ours, sizes)
    return Trial(case, choice, ours if choice.kernels == "ours" else None)


def measured(case: Case, ours: Callable[..., Any], sizes: Sequence[int], timer: Any = medians) -> Choice:
    """The faster implementation over batch sizes, for each form of the operation by itself, in captured graphs.

    Forms in which upstream's is faster stay upstream's; with all of them, so does the operation.
    """
    upstream = case.upstream
    found: dict[str, Choice] = {}
    for form, more in case.timed_forms().items():
        pairs = []
        for rows in sizes:
            given = case.arguments(rows, **more)
            what = f"{rows} rows" + (f" {form}" if form else "")
            pairs.append(Pair(what, lambda given=given: ours(**given), lambda given=given: upstream(**given)))
        found[form] = choose_over(case.name, pairs, case.device, timer)
    left = tuple(form for form, choice in found.items() if choice.kernels == "upstream")
    reason = "; ".join(choice.reason for choice in found.values())
    times = [sum(getattr(choice, name) or 0.0 for choice in found.values()) for name in ("ours_s", "upstream_s")]
    if len(left) == len(found):
        return Choice(case.name, "upstream", reason, *times)
    kept = f", {' and '.join(left)} rows stay upstream's" if left else ""
    return Choice(case.name, "ours", reason + kept, *times, left)


def trial_sizes(case: Case) -> list[int]:
    """The batch sizes that an operation is measured at: one request, a quarter of the most that are served and the
    most, as far as they fit the free memory; none where not even the check does."""
    most = max(1, int(case.worker.model_runner.max_running_requests))
    wanted = sorted({1, max(1, most // 4), most})
    free = free_bytes(case.device)
    if free is None:
        return wanted
    fits = min(free // 2, _MOST_TRIAL_BYTES) // case.row_bytes()
    return [] if fits < CHECKED_ROWS else sorted({min(size, fits) for size in wanted})


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a CUDA device, torch's own cache included; None elsewhere."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def _free_cache(device: torch.device) -> None:
    """What a trial has taken goes back to the device: SGLang captures its graphs next."""
    if device.type == "cuda":
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()


def agreed(trials: Sequence[Trial], gathered: Sequence[dict[str, Choice]]) -> list[Trial]:
    """The same choice on every rank: ours where rank 0 chose it and every rank can, by all ranks' choices."""
    out = []
    for trial in trials:
        choices = [found[trial.case.name] for found in gathered]
        against = [choice for choice in choices if choice.kernels == "upstream"]
        choice = against[0] if against else choices[0]
        if choice.kernels == "ours":  # a form is ours where it is on every rank
            left = tuple(sorted({form for one in choices for form in one.left}))
            if left and set(left) == set(trial.case.timed_forms()):
                choice = replace(choice, kernels="upstream", left=())
            else:
                choice = replace(choice, left=left)
        out.append(Trial(trial.case, choice, trial.ours if choice.kernels == "ours" else None))
    return out


class Installed:
    """Operations of ours in SGLang's place; `close` puts SGLang's back."""

    def __init__(self, worker: Any, trials: Sequence[Trial], faults: Faults) -> None:
        self.choices = {trial.case.name: trial.choice for trial in trials}
        self._faults = faults
        self._undo = ExitStack()
        self._ours = {trial.case.name: trial.ours for trial in trials if trial.ours is not None}
        for trial in trials:
            if trial.ours is None:
                continue
            if trial.choice.left:
                trial.case.leave(trial.ours, frozenset(trial.choice.left))
            guarded = Guarded(trial.case.name, trial.ours, trial.case.upstream, faults)
            for owner, name in _places(worker)[trial.case.name]:
                self._put(owner, name, guarded)

    def __bool__(self) -> bool:
        return bool(self._ours)

    def _put(self, owner: Any, name: str, value: Any) -> None:
        own = name in vars(owner)
        self._undo.callback(setattr if own else _forget, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def close(self) -> None:
        """SGLang's own from now on."""
        self._undo.close()
        self._ours.clear()

    def weights_change(self) -> None:
        """The draft's weights are about to change in place: nothing that was computed from them decides any more."""
        markov = self._ours.get("markov")
        if isinstance(markov, MarkovOperation):
            markov.drop_bounds()

    def weights_changed(self) -> None:
        """They have changed: compute it again. Where that fails, everything is read, which is right and slower."""
        markov = self._ours.get("markov")
        if isinstance(markov, MarkovOperation):
            with self._faults.caught("kernel markov bounds", "the whole vocabulary is read"):
                markov.refill_bounds()


def _places(worker: Any) -> dict[str, list[tuple[Any, str]]]:
    return {
        "markov": [(dspark_draft, "draft_markov_block"), (dspark_draft_sampler, "draft_markov_block")],
        "rejection": [(dspark_verify, "accept_draft_tokens")],
        # SGLang's draft model is a torch module: its own __setattr__ takes a plain callable as it is.
        "confidence": [(worker.draft_model, "compute_confidence")],
        "admission": [(admission, "allocate_on_device")],
    }


def _forget(owner: Any, name: str, value: Any) -> None:
    delattr(owner, name)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


def _mib_free(case: Case) -> str:
    free = free_bytes(case.device)
    return "unknown" if free is None else f"{_mib(free)}, a row takes {_mib(case.row_bytes())}"
