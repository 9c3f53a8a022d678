"""A stopping rule decided on the device that drafted: only the lengths and their total come to the host.

Synchronous schedules decide after the draft. Copying [R, gamma] survivals and walking them in NumPy costs a copy and
host time; the kernel costs two launches and a copy of R + 1 integers. Which is faster is measured (`measure_live`),
not assumed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from dspark_kernels.admission import MAX_REQUESTS, admit
from dspark_kernels.choose import Choice, Mode, choose
from dspark_kernels.survival import MAX_GAMMA, survival_units

from sglang_dspark.cost import StepCost, StepPrices
from sglang_dspark.policies import (
    Decision,
    EarlyStop,
    Foresight,
    Hull,
    LiveBlock,
    Lookahead,
    Past,
    Policy,
    StoppingRule,
    single_part,
)
from sglang_dspark.serving.base.admission import corrected_on_device
from sglang_dspark.serving.base.faults import Faults

_TABLES_KEPT = 512

Walked = EarlyStop | Hull | Lookahead | Foresight
WALKED = (EarlyStop, Hull, Lookahead, Foresight)
"""The rules that have a kernel; a subclass of one is another rule."""


class LiveAdmission:
    """Decides the shipped stopping rules on one device. Tables of prices go there once and stay; `foresight` sends
    what the past says of its tops at every step, a few hundred bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables: OrderedDict[tuple[Policy, int], tuple[StepPrices, dict[str, torch.Tensor | str]]] = OrderedDict()

    def serves(self, policy: Policy, num_requests: int, gamma: int) -> bool:
        """Whether the kernel has this rule at this size; a subclass of a rule is another rule."""
        known = type(policy) in WALKED
        return known and 1 <= num_requests <= MAX_REQUESTS and gamma <= MAX_GAMMA

    def decide(self, policy: Walked, past: Past, confidence: torch.Tensor) -> Decision:
        """What `policy.decide(past, LiveBlock.of(confidence))` decides, bit for bit. confidence: [R, gamma] on the
        device.

        Waits for the device once, for R + 1 integers.
        """
        tables = self._tables_of(policy, past)
        if isinstance(policy, Foresight):
            tables = {**tables, **self._beyond(policy, past)}
        units = survival_units(confidence.to(torch.float32).contiguous())
        found = admit(units, floor=policy.floor, cap=policy.cap, **tables)
        host = torch.cat([found.lengths, found.total]).cpu().numpy().astype(np.int64)
        return Decision(host[:-1], int(host[-1]))

    def _tables_of(self, policy: StoppingRule, past: Past) -> dict[str, torch.Tensor | str]:
        # The prices are kept beside the tables: an identity is only unique while its object lives.
        key = (policy, id(past.prices))
        if key not in self._tables:
            self._tables[key] = (past.prices, of_one_form(self._make(policy, past)))
            while len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key][1]

    def _make(self, policy: StoppingRule, past: Past) -> dict[str, torch.Tensor | str]:
        def sent(array: np.ndarray[Any, Any]) -> torch.Tensor:
            return torch.tensor(array).to(self._device)

        if isinstance(policy, Lookahead):
            return {"rule": "lookahead", "inverse": sent(past.prices.inverse), "tops": sent(policy.tables(past))}
        if isinstance(policy, Foresight):
            return {"rule": "foresight", "inverse": sent(past.prices.inverse)}
        inverse, fill_to = policy.tables(past)
        tables: dict[str, torch.Tensor | str] = {"rule": "early-stop", "inverse": sent(inverse)}
        return tables if fill_to is None else {**tables, "fill_to": sent(fill_to)}

    def _beyond(self, policy: Foresight, past: Past) -> dict[str, Any]:
        """`tops` and `beyond` of this step in one copy, at a length of 1 modulo 16 (see `of_one_form`)."""
        packed = np.stack(policy.tables(past))
        missing = (-(packed.shape[1] - 1)) % 16 if packed.shape[1] > 1 else 16 * packed.shape[1]
        if packed.shape[1]:
            packed = np.pad(packed, ((0, 0), (0, missing)), mode="edge")
        tops, summed, following = torch.from_numpy(packed).to(self._device, non_blocking=True)
        return {"tops": tops, "beyond": (summed, following)}


def of_one_form(tables: dict[str, torch.Tensor | str]) -> dict[str, torch.Tensor | str]:
    """The same tables at lengths of 1 modulo 16 above 1: Triton compiles multiples of 16, and 1, apart.

    A walk stops at a price of 0, and looking ahead to one end of a tier twice changes nothing.
    """
    out = dict(tables)
    for name in ("inverse", "tops"):
        table = tables.get(name)
        if isinstance(table, torch.Tensor) and table.numel():
            missing = 1 + -table.numel() % 16 if table.numel() % 16 != 1 or table.numel() == 1 else 0
            padding = table.new_zeros(missing) if name == "inverse" else table[-1:].expand(missing)
            out[name] = torch.cat([table, padding])
    return out


class LiveDecisions:
    """Where each live policy is decided, by measurement: on the device, or in NumPy on the copied survivals.

    All of it is built, checked and measured in `prepare`; what is not prepared is decided on the host.
    """

    def __init__(self, device: torch.device, mode: Mode, faults: Faults | None = None) -> None:
        self._device, self._mode = device, mode
        self._faults = faults or Faults()
        self._admission = LiveAdmission(device)
        self.choices: dict[tuple[str, int], Choice] = {}

    def prepare(self, cost: StepCost | None, gamma: int, max_requests: int) -> None:
        """Before requests run: every rule at every power of two of R. Never raises; `cost` None prepares nothing."""
        if self._mode == "upstream" or cost is None or (self._mode == "auto" and self._device.type != "cuda"):
            return
        sizes = sorted({1 << bits for bits in range(max_requests.bit_length())} | {3, 16} | {max_requests})
        for policy in (EarlyStop(), Hull(), Lookahead(), Foresight()):
            try:
                for num_requests in sizes:
                    past = Past(num_requests, gamma, cost.prices(num_requests, gamma, 0.0))
                    self._prepare(policy, past)
            except Exception as error:
                self._give_up(rule_of(policy), error)

    def _prepare(self, policy: Walked, past: Past) -> None:
        if not self._admission.serves(policy, past.num_requests, past.gamma):
            return
        confidence = 0.5 + 0.5 * torch.rand(past.num_requests, past.gamma, device=self._device)
        here = self._admission.decide(policy, past, confidence)
        want = policy.decide(past, LiveBlock.of(confidence.cpu().numpy()))
        if here.total != want.total or not np.array_equal(here.lengths, want.lengths):
            raise ArithmeticError(f"{policy.name} decides {here.total} tokens on the device, expected {want.total}")
        key = (rule_of(policy), past.num_requests.bit_length())
        if key not in self.choices:
            self.choices[key] = measure_live(policy, past, self._device, self._mode)

    def decide(self, policy: Policy, past: Past, confidence: torch.Tensor) -> Decision | None:
        """The decision on `confidence` [R, gamma] where the device decides, None where the host does."""
        policy, past, numbers = single_part(policy, past)
        if not isinstance(policy, Walked):
            return None
        choice = self.choices.get((rule_of(policy), past.num_requests.bit_length()))
        if choice is None or choice.kernels == "upstream" or not self._prepared(policy, past):
            return None
        try:
            return self._admission.decide(policy, past, corrected_on_device(confidence, numbers))
        except Exception as error:
            # What the host decides instead is the same decision: the two are equal, bit for bit.
            self._give_up(rule_of(policy), error)
            return None

    def _prepared(self, policy: Walked, past: Past) -> bool:
        """Whether the kernel is built: other floors and caps would be compiled while requests run."""
        whole = policy.floor == 0 and policy.cap in (None, past.gamma) and past.caps is None
        return whole and self._admission.serves(policy, past.num_requests, past.gamma)

    def _give_up(self, rule: str, error: Exception) -> None:
        self._faults.note("kernel live admission", error, f"{rule} is decided on the host")
        self.choices = {key: choice for key, choice in self.choices.items() if key[0] != rule}


def rule_of(policy: Walked) -> str:
    """The form of the kernel that decides a policy: two policies of one form differ in their tables alone."""
    if isinstance(policy, Lookahead | Foresight):
        return policy.name
    return "early stop, filled" if isinstance(policy, Hull) and policy.fill else "early stop"


def measure_live(policy: Walked, past: Past, device: torch.device, mode: Mode = "auto") -> Choice:
    """Decide on the device ("ours") or copy the survivals and decide in NumPy ("upstream"), whichever is faster here.

    Both are timed from the confidences on the device to lengths on the host, at `past`'s size.
    """
    if mode != "upstream" and not LiveAdmission(device).serves(policy, past.num_requests, past.gamma):
        return Choice(
            "live admission", "upstream", f"no kernel for {policy.name} at {past.num_requests} x {past.gamma}"
        )
    confidence = 0.5 + 0.5 * torch.rand(past.num_requests, past.gamma, device=device)
    live = LiveAdmission(device)

    def copied() -> Decision:
        return policy.decide(past, LiveBlock.of(confidence.cpu().numpy()))

    on_device: Callable[[], Decision] = lambda: live.decide(policy, past, confidence)  # noqa: E731
    return choose("live admission", on_device, copied, device, mode, graph=False)
