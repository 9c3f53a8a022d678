"""One run and its figures."""

from __future__ import annotations

from collections.abc import Callable

from sglang_dspark.policies import Policy
from simulator.engine.recorder import DecodeView, Recorder, StepView
from simulator.engine.run import Setting, assemble
from simulator.results.metrics import Figures, figures


def run_once(
    setting: Setting,
    policy: Policy,
    replication: int = 0,
    *,
    on_step: Callable[[StepView], None] | None = None,
    on_decode: Callable[[DecodeView], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Figures, Recorder]:
    """Simulate one policy on one set of draws.

    replication: names the draws; the same for every policy that is compared. on_step sees every engine step as it
    ended, on_decode every decode step request by request, on_progress the number of completed requests.

    Errors: InputError.
    """
    run = assemble(setting, policy, replication, on_step=on_step, on_decode=on_decode, on_progress=on_progress)
    run.env.run(until=run.router.done)
    return figures(run, setting.slos_ms), run.recorder
