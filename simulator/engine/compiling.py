"""When compiled steps pay: what a run would take without them, against what it takes to load or to compile them.

Both give the same figures, so this is a matter of time alone. Loading takes half a second of each process, compiling 20
seconds once on a machine: when what Python has done there so far has taken about as long.
"""

from __future__ import annotations

from collections.abc import Iterable

from sglang_dspark import jit
from sglang_dspark.policies import Policy
from sglang_dspark.policies.programs import program_of
from simulator.engine.stepping import LOOPS
from simulator.traces import Trace

_LOADS_S, _COMPILES_S = 0.5, 20.0
_STEP_S, _REQUEST_STEP_S, _TOKENS_A_STEP = 40e-6, 0.5e-6, 2.5
_FEW = 1.6  # requests that run at once where nothing says how many


def python_s(trace: Trace, concurrency: int | None) -> float:
    """Seconds that Python would take for one run, roughly. concurrency: None, open loop."""
    running = concurrency or _FEW
    steps = float(trace.output_length.sum()) / (_TOKENS_A_STEP * running)
    return steps * (_STEP_S + running * _REQUEST_STEP_S)


def compile_ahead(loads: Iterable[tuple[Trace, int | None]], jobs: int) -> None:
    """Before processes start: compile what all of them use, where they and others before them have enough to do."""
    work_s = sum(python_s(*load) for load in loads)
    if not jit.kept(LOOPS) and jit.add_work(work_s) > jobs * _COMPILES_S:
        jit.prepare(LOOPS)


def expect(trace: Trace, concurrency: int | None, policy: Policy) -> None:
    """A run begins in this process, which has done others: load, or compile, where all of them together pay for it.

    A rule of somebody's own stays in Python, and what it uses of compiled code looks after itself (`jit.policy_loops`).
    """
    if program_of(policy) is not None:
        jit.expect(python_s(trace, concurrency), LOOPS, _LOADS_S, 2 * _COMPILES_S)
