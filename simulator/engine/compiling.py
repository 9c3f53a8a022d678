"""When compiled steps pay: what a run would take without them, against what it takes to load or to compile them.

Both give the same figures, so this is a matter of time alone. Loading takes a second of each process, compiling half a
minute once on a machine: when what Python has done there so far has taken about as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sglang_dspark import jit
from sglang_dspark.policies import Policy
from sglang_dspark.policies.programs import program_of
from simulator.engine.stepping import LOOPS, PACKAGES

if TYPE_CHECKING:
    from simulator.engine.run import Setting

_LOADS_S, _COMPILES_S = 2.0, 20.0
_STEP_S, _REQUEST_STEP_S, _TOKENS_A_STEP = 40e-6, 0.5e-6, 2.5
_FEW = 1.6  # requests that run at once where nothing says how many


def python_s(setting: Setting, replication: int) -> float:
    """Seconds that Python would take for one run, roughly."""
    running = setting.concurrency or _FEW
    steps = float(setting.part(replication).output_length.sum()) / (_TOKENS_A_STEP * running)
    return steps * (_STEP_S + running * _REQUEST_STEP_S)


def compile_ahead(runs: Iterable[tuple[Setting, int]], jobs: int) -> None:
    """Before processes start: compile what all of them use, where they and others before them have enough to do."""
    work_s = sum(python_s(setting, replication) for setting, replication in runs)
    if not jit.kept(LOOPS) and jit.add_work(work_s) > jobs * _COMPILES_S:
        for package in PACKAGES:
            jit.prepare(package)


def expect(setting: Setting, policy: Policy, replication: int) -> None:
    """A run begins in this process, which has done others: load, or compile, where all of them together pay for it."""
    packages = (jit.POLICY_LOOPS,) if program_of(policy) is None else PACKAGES
    jit.expect(python_s(setting, replication), packages, _LOADS_S, 2 * _COMPILES_S)
