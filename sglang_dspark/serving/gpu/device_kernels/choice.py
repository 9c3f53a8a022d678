"""Which operations are ours on this device: tried at start, measured beside upstream's, put in place, taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from dspark_kernels.choose import Choice, Mode, choose
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
    rows = trial_rows(case)
    if rows < 1:
        return Trial(case, Choice(case.name, "upstream", f"too little memory is free to try it ({_mib_free(case)})"))
    ours = case.build()
    wrong = case.check(ours)
    if wrong:
        faults.note(f"kernel {case.name}", f"it differs from its reference: {wrong}", "SGLang's own runs")
        return Trial(case, Choice(case.name, "upstream", f"it differs from its reference: {wrong}"))
    case.warm(ours)
    upstream = case.upstream
    choice = Choice(case.name, "ours", "asked for")
    if mode == "auto":
        given = case.arguments(rows)
        choice = choose(case.name, lambda: ours(**given), lambda: upstream(**given), case.device, mode, graph=False)
    return Trial(case, choice, ours if choice.kernels == "ours" else None)


def trial_rows(case: Case) -> int:
    """The batch size that an operation is measured at: a quarter of the largest one served where that fits the free
    memory, 0 where not even the check does."""
    wanted = max(1, int(case.worker.model_runner.max_running_requests) // 4)
    free = free_bytes(case.device)
    if free is None:
        return wanted
    fits = min(free // 2, _MOST_TRIAL_BYTES) // case.row_bytes()
    return 0 if fits < CHECKED_ROWS else min(wanted, fits)


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
