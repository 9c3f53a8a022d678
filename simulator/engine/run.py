"""One run: a trace through engine replicas under one policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.cost.graphs import Machine
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Fixed, Policy, policy_to_string
from simulator.blocks.acceptance import AcceptanceSource, StatisticalAcceptance
from simulator.blocks.confidence import Confidence
from simulator.blocks.draft_time import drafted_positions, with_drafter
from simulator.blocks.drafter import DOMAINS, Drafter
from simulator.blocks.random import stream
from simulator.engine.clock import Clock
from simulator.engine.compiling import expect
from simulator.engine.lockstep import LockStep
from simulator.engine.model import EngineModel, kv_reserve
from simulator.engine.prefix_cache import Prompts
from simulator.engine.recorded_load import RecordedLoad
from simulator.engine.recorder import DecodeView, Recorder, StepView
from simulator.engine.replica import Engine
from simulator.engine.router import Router
from simulator.engine.server import Graphs, Server, set_up
from simulator.engine.settings import EngineSettings
from simulator.traces import Trace, part_of, with_poisson_arrivals


@dataclass(frozen=True)
class Setting:
    """Everything but the policy. Picklable; the same for all policies and replications of a comparison.

    cost: what the engine costs. belief: what the policies believe. concurrency: closed loop, None: open loop.
    request_rate: Poisson arrivals, drawn anew in every replication. domain_mix: used where the trace has no domains;
    None: even.
    windows: consecutive parts of the trace; replication r serves part r mod windows. slos_ms: limits of goodput.
    recorded: records that give the acceptance of the trace's requests; drafter is then theirs, confidence unused.
    explore: share of the steps that verify everything on a coin drawn before them, as a recording server may.
    graphs: whose CUDA graphs the engine runs on. gpu_memory_gib, tp: of the machine, where the profile does not say or
    another one is meant.
    """

    trace: Trace
    cost: StepCost
    belief: StepCost
    drafter: Drafter
    confidence: Confidence = Confidence()
    engine: EngineSettings = EngineSettings()
    concurrency: int | None = None
    request_rate: float | None = None
    domain_mix: dict[str, float] | None = None
    seed: int = 0
    recorded: RecordedLoad | None = None
    windows: int = 1
    slos_ms: dict[str, float] = field(default_factory=dict)
    graphs: Graphs = "sglang"
    gpu_memory_gib: float | None = None
    tp: int | None = None
    explore: float = 0.0

    def part(self, replication: int) -> Trace:
        """The requests that a replication serves: the trace, or one of its windows."""
        return self.trace if self.windows == 1 else part_of(self.trace, replication % self.windows, self.windows)

    def domains(self, trace: Trace, seed: int) -> np.ndarray:
        """Index into the drafter's domains for every request of a trace [N]."""
        return domains_of(trace, self.domain_mix, seed, self.drafter.domains)

    @property
    def machine(self) -> Machine:
        """What SGLang's defaults depend on."""
        return Machine.of(self.cost.meta, self.gpu_memory_gib, self.tp)

    def server(self, policy: Policy) -> Server:
        """The server of one replica that runs this policy."""
        return set_up(
            self.engine,
            self.cost,
            self.machine,
            self.graphs,
            drafting=policy.drafts,
            gamma=self.drafter.gamma,
            concurrency=self.concurrency,
        )

    @property
    def caches_prefixes(self) -> bool:
        """Whether replicas have a prefix cache, and the trace says what it can find."""
        cache = self.engine.prefix_cache and self.engine.prefill_elsewhere_s is None
        return cache and self.trace.prefix_blocks is not None

    def check(self, policy: Policy) -> None:
        """Refuse a policy that this setting cannot run or price (InputError)."""
        self._check_prefix_cache()
        self.engine.schedule_for(policy)
        least = int((self.trace.input_length + self.trace.output_length).min()) + kv_reserve(policy, self.drafter.gamma)
        kv_tokens = self.server(policy).kv_tokens
        if least > kv_tokens:
            raise InputError(f"no request fits in {kv_tokens} KV tokens, expected at least {least}")
        if policy.drafts:
            policy.check(self.drafter.gamma)
            if self.drafter.name == "none":
                raise InputError(f"policy '{policy.name}' drafts, but the drafter is 'none': expected policy none")
        elif not self.cost.splits_draft:
            message = (
                f"profile '{self.cost.name}' does not tell draft from verify time, so policy none cannot be priced"
            )
            raise InputError(message)
        if policy.drafts and self.recorded is None:
            for model in (self.cost, self.belief):
                with_drafter(model, self.drafter, drafted_positions(policy, self.drafter))
        verified = policy.k if isinstance(policy, Fixed) else None
        for model in {self.cost.name: self.cost, self.belief.name: self.belief}.values():
            if policy.drafts and not model.holds_diagonal(verified, self.drafter.gamma):
                gamma = model.diagonal_gamma or self.drafter.gamma
                what = f"'{policy_to_string(policy)}' with gamma {self.drafter.gamma}"
                raise model.off_diagonal(what, f"give --gamma {gamma} --policy fixed:k={gamma}, or --force-diagonal")

    def _check_prefix_cache(self) -> None:
        if self.engine.prefix_cache:
            return
        if self.engine.prefill_elsewhere_s is not None:
            raise InputError("--no-prefix-cache does nothing with --prefill elsewhere: decode servers keep none")
        if self.trace.prefix_blocks is None:
            raise InputError(f"--no-prefix-cache does nothing with {self.trace.source}: it has no hash_ids")


@dataclass(frozen=True)
class Assembly:
    """The parts of one run, ready to go: `env.run(until=router.done)`."""

    env: Clock
    trace: Trace
    model: EngineModel
    recorder: Recorder
    router: Router
    engines: list[Engine]


def assemble(
    setting: Setting,
    policy: Policy,
    replication: int = 0,
    *,
    on_step: Callable[[StepView], None] | None = None,
    on_tokens: Callable[[int, float, int], None] | None = None,
    on_decode: Callable[[DecodeView], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Assembly:
    """A run of one policy on one set of draws, ready to go; see `results.run.run_once`."""
    setting.check(policy)
    seed = setting.seed + (replication << 32)
    trace = setting.part(replication)
    if setting.request_rate is not None:
        trace = with_poisson_arrivals(trace, setting.request_rate, seed)
    model = _engine_model(setting, policy, trace, seed)
    expect(trace, setting.concurrency, policy)
    env = Clock()
    recorder = Recorder(trace.input_length, trace.output_length, model.gamma, on_step, on_tokens, on_decode)
    router = Router(env, trace, recorder, model.kv_tokens, model.kv_reserve, setting.engine.prefill_elsewhere_s)
    on_finish = router.on_finish if on_progress is None else _reporting(router, recorder, on_progress)
    engines = [Engine(env, model, recorder, on_finish, replica, router) for replica in range(setting.engine.replicas)]
    for loop in [LockStep(env, engines)] if setting.engine.dp_attention else engines:
        env.process(loop.run())
    slots = model.server.max_running_requests * setting.engine.replicas
    router.start(engines, setting.engine.router, setting.concurrency, slots)
    return Assembly(env, trace, model, recorder, router, engines)


def _reporting(router: Router, recorder: Recorder, on_progress: Callable[[int], None]) -> Callable[[int], None]:
    def on_finish(request: int) -> None:
        router.on_finish(request)
        on_progress(recorder.completed)

    return on_finish


def _engine_model(setting: Setting, policy: Policy, trace: Trace, seed: int) -> EngineModel:
    source = _acceptance(setting, trace, seed)
    server = setting.server(policy)
    cost, belief = step_costs(setting, policy)
    slack = _slack(trace, server.kv_tokens - kv_reserve(policy, source.gamma))
    online = setting.recorded is None and setting.confidence.online
    schedule = setting.engine.schedule_for(policy)
    policy = policy.for_schedule(schedule != "overlapped")
    prompts = Prompts.of(trace) if setting.caches_prefixes else None
    return EngineModel(
        setting.engine,
        policy,
        cost,
        belief,
        source,
        schedule,
        server,
        slack,
        online,
        prompts=prompts,
        explore=setting.explore,
        seed=seed,
    )


def step_costs(setting: Setting, policy: Policy) -> tuple[StepCost, StepCost]:
    """(what steps cost, what the policy believes), with the setting's drafter and on the graphs of the server."""
    cost, belief = setting.cost, setting.belief
    if policy.drafts and setting.recorded is None:
        positions = drafted_positions(policy, setting.drafter)
        cost = with_drafter(setting.cost, setting.drafter, positions)
        belief = cost if setting.belief is setting.cost else with_drafter(setting.belief, setting.drafter, positions)
    server = setting.server(policy)
    executed = server.on_graphs(cost)
    return executed, executed if belief is cost else server.on_graphs(belief)


def _slack(trace: Trace, room: int) -> np.ndarray | None:
    """[N] tokens that a client's max_tokens allows in `room` KV tokens beyond those that it gets; None: it gets all."""
    if trace.max_tokens is None:
        return None
    allowed = np.minimum(trace.max_tokens, room - trace.input_length)  # SGLang cuts it so, managers/scheduler.py:2710
    return np.maximum(allowed - trace.output_length, 0)


def _acceptance(setting: Setting, trace: Trace, seed: int) -> AcceptanceSource:
    if setting.recorded is not None:
        return setting.recorded.source(trace, seed)
    domain = setting.domains(trace, seed)
    return StatisticalAcceptance(setting.drafter, setting.confidence, domain, trace.output_length, seed)


def domains_of(trace: Trace, mix: dict[str, float] | None, seed: int, names: tuple[str, ...] = DOMAINS) -> np.ndarray:
    """Index into `names` for every request [N]: the trace's own domain, or drawn from the mix (None: even)."""
    if len(names) == 1:
        return np.zeros(len(trace), dtype=np.int64)
    if trace.domain is not None:
        domain = np.array([names.index(name) if name in names else -1 for name in trace.domains])[trace.domain]
        if (domain < 0).any():  # only what is served counts: the file may name more
            unknown = trace.domains[trace.domain[np.argmin(domain)]]
            raise InputError(f"trace domain '{unknown}' has no acceptance, expected {', '.join(names)}")
        return domain
    share = np.array([1.0 if mix is None else mix.get(name, 0.0) for name in names])
    return np.searchsorted(
        np.cumsum(share / share.sum())[:-1], stream(seed, "domains").random(len(trace)), side="right"
    )
