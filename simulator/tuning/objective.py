"""What is searched for: figures of a run, whether more of each is better, and one value of many loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sglang_dspark.errors import InputError
from sglang_dspark.policies import NoDraft
from simulator.engine.run import Setting
from simulator.results.figures import more_is_better
from simulator.results.metrics import Figures
from simulator.results.run import run_once
from simulator.traces import first_requests

_SAMPLE = 40
_FLOOR = 1e-12


@dataclass(frozen=True)
class Objective:
    """name: as it was asked. figure: of a run. more: whether more of it is better."""

    name: str
    figure: str
    more: bool

    def of(self, figures: Figures) -> float:
        """The value of a run."""
        return float(figures[self.figure])

    def better(self, one: float, other: float) -> bool:
        """Whether one value is better than another."""
        return one > other if self.more else one < other

    def gain(self, value: float, base: float) -> float:
        """Relative gain over another value: above 0 is better."""
        if base == 0:
            return 0.0 if value == 0 else math.inf if self.more else -math.inf
        return (value / base - 1) * (1 if self.more else -1)

    @property
    def words(self) -> str:
        """For people."""
        return self.figure.replace("_", " ").removesuffix(" ms") + (" (ms)" if self.figure.endswith("_ms") else "")


def over_loads(values: Sequence[float]) -> float:
    """One value of several loads: their geometric mean, so that no load's scale decides."""
    return values[0] if len(values) == 1 else math.exp(sum(math.log(max(v, _FLOOR)) for v in values) / len(values))


def objectives(asked: Sequence[str], setting: Setting) -> list[Objective]:
    """The objectives by name; by default throughput in a closed loop, goodput under limits, else latency.

    A closed loop's figures are those of its steady window where there are some. Errors: InputError for a figure that
    runs do not have, that is neither good nor bad, or that tells nothing in this loop.
    """
    closed = setting.concurrency is not None
    names = list(asked) or ["goodput" if setting.slos_ms else "output_throughput" if closed else "mean_e2e_latency_ms"]
    if len(set(names)) != len(names):
        raise InputError(f"--objective names one figure twice: {', '.join(names)}, expected each once")
    sample = replace(setting, trace=first_requests(setting.trace, _SAMPLE), windows=1, recorded=None)
    policy = NoDraft()
    known = run_once(sample, policy)[0] if setting.recorded is None else run_once(_short(setting), policy)[0]
    return [_objective(name, known, setting) for name in names]


def _short(setting: Setting) -> Setting:
    return replace(setting, trace=first_requests(setting.trace, _SAMPLE), windows=1)


def _objective(name: str, known: Figures, setting: Setting) -> Objective:
    figure = "request_goodput" if name == "goodput" else name
    if figure in ("request_goodput", "slo_attainment") and not setting.slos_ms:
        raise InputError(f"--objective {name} needs limits: give --goodput, such as --goodput ttft:500")
    if setting.concurrency is not None and f"steady_{figure}" in known:
        figure = f"steady_{figure}"
    more = more_is_better(figure, known)
    if setting.concurrency is None and figure.endswith("_throughput"):
        raise InputError(
            f"--objective {name} is what an open loop is offered and judges nothing: give --concurrency, or another "
            "--objective, such as goodput or mean_e2e_latency_ms"
        )
    return Objective(name, figure, more)
