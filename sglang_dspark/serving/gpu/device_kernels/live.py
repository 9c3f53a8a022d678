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

from sglang_dspark.cost import StepPrices
from sglang_dspark.policies import Decision, EarlyStop, Hull, LiveBlock, Lookahead, Past, Policy, StoppingRule

_TABLES_KEPT = 512


class LiveAdmission:
    """Decides `early-stop`, `hull` and `lookahead` on one device. Tables go there once per prices and stay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables: OrderedDict[tuple[Policy, int], tuple[StepPrices, dict[str, torch.Tensor | str]]] = OrderedDict()

    def serves(self, policy: Policy, num_requests: int, gamma: int) -> bool:
        """Whether the kernel has this rule at this size; a subclass of a rule is another rule."""
        known = type(policy) in (EarlyStop, Hull, Lookahead)
        return known and 1 <= num_requests <= MAX_REQUESTS and gamma <= MAX_GAMMA

    def decide(self, policy: EarlyStop | Hull | Lookahead, past: Past, confidence: torch.Tensor) -> Decision:
        """What `policy.decide(past, LiveBlock.of(confidence))` decides, bit for bit. confidence: [R, gamma] on the
        device.

        Waits for the device once, for R + 1 integers.
        """
        tables = self._tables_of(policy, past)
        units = survival_units(confidence.to(torch.float32).contiguous())
        found = admit(units, floor=policy.floor, cap=policy.cap, **tables)
        host = torch.cat([found.lengths, found.total]).cpu().numpy().astype(np.int64)
        return Decision(host[:-1], int(host[-1]))

    def _tables_of(self, policy: StoppingRule, past: Past) -> dict[str, torch.Tensor | str]:
        # The prices are kept beside the tables: an identity is only unique while its object lives.
        key = (policy, id(past.prices))
        if key not in self._tables:
            self._tables[key] = (past.prices, self._make(policy, past))
            while len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key][1]

    def _make(self, policy: StoppingRule, past: Past) -> dict[str, torch.Tensor | str]:
        def sent(array: np.ndarray[Any, Any]) -> torch.Tensor:
            return torch.tensor(array).to(self._device)

        if isinstance(policy, Lookahead):
            return {"rule": "lookahead", "inverse": sent(past.prices.inverse), "tops": sent(policy.tables(past))}
        inverse, fill_to = policy.tables(past)
        tables: dict[str, torch.Tensor | str] = {"rule": "early-stop", "inverse": sent(inverse)}
        return tables if fill_to is None else {**tables, "fill_to": sent(fill_to)}


class LiveDecisions:
    """Where each live policy is decided, by measurement: on the device, or in NumPy on the copied survivals."""

    def __init__(self, device: torch.device, mode: Mode) -> None:
        self._device, self._mode = device, mode
        self._admission = LiveAdmission(device)
        self.choices: dict[tuple[Policy, int], Choice] = {}

    def decide(self, policy: Policy, past: Past, confidence: torch.Tensor) -> Decision | None:
        """The decision on `confidence` [R, gamma] where the device decides, None where the host does.

        Measured once for every policy and power of two of R.
        """
        if not isinstance(policy, EarlyStop | Hull | Lookahead):
            return None
        if not self._admission.serves(policy, past.num_requests, past.gamma):
            return None
        key = (policy, past.num_requests.bit_length())
        if key not in self.choices:
            self.choices[key] = measure_live(policy, past, self._device, self._mode)
        if self.choices[key].kernels == "upstream":
            return None
        return self._admission.decide(policy, past, confidence)


def measure_live(policy: EarlyStop | Hull | Lookahead, past: Past, device: torch.device, mode: Mode = "auto") -> Choice:
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
