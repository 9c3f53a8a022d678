"""Several drafters as the flags of `simulate` ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator.drafter_comparison import DrafterComparison, compared
from simulator.flags.acceptance import AcceptanceFlags, refuse_unread_confidence
from simulator.flags.cluster import ClusterFlags
from simulator.flags.engine import EngineFlags
from simulator.flags.load import LoadFlags
from simulator.inputs import prepare
from simulator.progress import Teller, progress
from simulator.run_store import RunStore
from simulator.simulate import check_runs


def refuse_with_drafters(flags: dict[str, object], policies: Sequence[str]) -> None:
    """InputError for a flag (by name, None: not given) or policies that say nothing to several drafters."""
    for flag, value in flags.items():
        if value is not None:
            raise InputError(f"--{flag} does nothing with several drafters, which are compared at matched speed")
    if len(policies) > 1:
        raise InputError(f"{len(policies)} policies are given with several drafters, expected one that all run under")


def compared_by_flags(
    load: LoadFlags,
    engine: EngineFlags,
    acceptance: AcceptanceFlags,
    cluster: ClusterFlags,
    policies: Sequence[str],
    replications: int | None,
    seed: int,
    jobs: int | None,
    resume: Path | None,
) -> DrafterComparison:
    """Several drafters at several loads."""
    requests = load.requests(seed, None)
    each = acceptance.read_each(requests, load.domains)
    serving = engine.engine(requests)
    settings = {
        name: [prepare(at, serving, drafts, seed=seed) for at in load.loads(requests, mix)]
        for name, (drafts, mix) in each.items()
    }
    asked = [make_policy(text) for text in policies]
    if asked:
        engine.refuse_unread(asked)
        refuse_unread_confidence(asked, acceptance.confidence)
    count = replications if replications is not None else max(5, load.windows) if load.windows == 1 else load.windows
    check_runs(asked or [None], load.windows, count, jobs)  # type: ignore[list-item]
    store = None if resume is None else RunStore(resume)
    with cluster.hire() as hire, progress("simulating") as told:

        def on_load(what: str) -> Teller:
            told.says(what)
            return told

        policy = asked[0] if asked else None
        return compared(settings, policy, replications=count, jobs=hire or jobs, on_load=on_load, store=store)
