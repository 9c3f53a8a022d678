"""SGLang's DSPARK worker with the policies of this package in charge of the verify lengths.

Everything else (draft, target, KV pools, graphs, tensor parallelism) is upstream's. Whoever wants to see the steps
registers with `PolicyWorker.add_observer`; `steps` documents that seam.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from sglang.srt.layers.dp_attention import get_dp_tp_group
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.runtime_context import get_observability, get_parallel, get_schedule
from sglang.srt.speculative.dspark_components import dspark_worker_v2
from sglang.srt.speculative.dspark_components.dspark_observability import InfoSegment
from sglang.srt.speculative.dspark_components.dspark_worker_v2 import DSparkWorkerV2
from sglang.srt.utils.common import get_cuda_graph_batch_size_alignment, get_device_memory_capacity

from sglang_dspark import jit
from sglang_dspark.cost.graphs import Machine
from sglang_dspark.errors import InputError
from sglang_dspark.serving.base import hardware, start_line
from sglang_dspark.serving.base.contract import WORKER_CALLS, moved
from sglang_dspark.serving.base.faults import Faults
from sglang_dspark.serving.base.options import Resolved, ServingOptions, options_of, record_limit, resolve
from sglang_dspark.serving.base.refusal import leave
from sglang_dspark.serving.base.steps import StepObserver
from sglang_dspark.serving.cpu import dp_attention as cpu_tiers
from sglang_dspark.serving.feedback.copies import DRAFT, VERIFY
from sglang_dspark.serving.feedback.metrics import PrometheusObserver, sglangs_labels
from sglang_dspark.serving.gpu import flashinfer_ragged
from sglang_dspark.serving.gpu.device_kernels.choice import Installed, agreed, attempt
from sglang_dspark.serving.loop.agreement import Agreement
from sglang_dspark.serving.loop.engine import PolicyEngine
from sglang_dspark.serving.loop.planner import PolicyPlanner
from sglang_dspark.serving.loop.tier_group import TierGroup
from sglang_dspark.serving.recording import recorder

logger = logging.getLogger(__name__)

_SEGMENTS = {InfoSegment.DRAFT: DRAFT, InfoSegment.TARGET_VERIFY: VERIFY}


class PolicyWorker(DSparkWorkerV2):
    """Overridden: the constructor, `alloc_memory_pool`, `init_cuda_graphs`, `weight_update_runners`,
    `forward_batch_generation`, `_forward_decode`, `_dp_verify_tier_num_tokens`, `_idle_verify_ragged_layout` and
    `note_request_finished`; the planner and the step observers are ours."""

    def __init__(
        self,
        server_args: Any,
        gpu_id: int,
        nccl_port: int,
        target_worker: TpModelWorker,
        draft_worker_cls: type[TpModelWorker] = TpModelWorker,
    ) -> None:
        self._faults = Faults()
        self._kernels: Installed | None = None
        self._bounds_wait = self._session_open = False
        changes = moved(WORKER_CALLS)
        if changes:
            raise leave(f"this SGLang is not the one that was overridden: {'; '.join(changes)}")
        if torch.device(target_worker.device).type == "cuda":
            # Attention backends are made after the workers: `flashinfer` then means ours, which serves ragged graphs.
            flashinfer_ragged.register()
        with _planner_replaced():
            super().__init__(server_args, gpu_id, nccl_port, target_worker, draft_worker_cls)
        self._everyone = _agreement_of(get_parallel().tp_group)
        self._agreement = _agreement_of(get_dp_tp_group())
        self._compile()
        try:
            self._resolved = self._resolve()
        except InputError as error:
            raise leave(error) from None
        self._observers: Any = StepTap(self._observers, self)

    def _compile(self) -> None:
        """For every policy that may be switched to; on a GPU the ranks that follow need none of it."""
        if self._agreement.decides or torch.device(self.device).type == "cpu":
            error = jit.prepare()
            if error is not None:
                self._faults.note("compiled decisions", error, "NumPy decides, which is slower")

    def _resolve(self) -> Resolved:
        """Rank 0's reading of the flags, on every rank: files may differ between nodes."""
        options, resolved = options_of(self.server_args), None
        if not self._verify_planner.carries_confidence:
            raise InputError("this draft has no confidence head: scheduling policies cannot run on it")
        if self._everyone.decides:
            resolved = resolve(options, self.gamma, self.server_args.speculative_dspark_sps_table_path)
            start_line.check_hardware(resolved.cost, options, hardware.hardware_name())
            loop = "normal" if get_schedule().disable_overlap_schedule else "overlap"
            logger.info("%s", start_line.start_line(resolved, options, self._verify_planner.mode_value, loop))
        return self._everyone.from_first(resolved)

    def _tier_group(self) -> TierGroup | None:
        """The ranks whose tier is shared, None without DP attention."""
        parallel = get_parallel()
        if not parallel.attn_dp_enabled:
            return None
        if torch.device(self.device).type == "cpu" and self._verify_planner.is_compact_mode:
            self._verify_planner.pads_eager_batches = cpu_tiers.follow()
        if self._everyone.decides:
            padded = self._verify_planner.pads_eager_batches or self._draft_is_moe and self._verify_planner.gathers_tier
            saves = "" if padded else "; outside of graphs SGLang pads them to full blocks, and only attention is saved"
            logger.info(
                "sglang-dspark: %d DP-attention ranks share the largest one's tier%s", parallel.attn_dp_size, saves
            )
        group, ranks = parallel.tp_group.cpu_group, parallel.attn_dp_size
        return TierGroup(group, parallel.attn_dp_rank, ranks, speaks=self._agreement.decides)

    def alloc_memory_pool(self, *arguments: Any, **named: Any) -> None:
        """The request slots exist from here on, and with them the engine."""
        super().alloc_memory_pool(*arguments, **named)
        self.policy_engine = PolicyEngine(
            self._resolved,
            gamma=self.gamma,
            generations=self.model_runner.req_to_token_pool.req_generation,
            device=torch.device(self.device),
            agreement=self._agreement,
            caps_only=not self._verify_planner.is_compact_mode,
            seed=self.target_worker.random_seed,
            kernels=options_of(self.server_args).kernels,
            faults=self._faults,
            tiers=self._tier_group(),
            everyone=self._everyone,
        )
        self._verify_planner.attach(self.policy_engine)
        self.policy_engine.hardware = hardware.hardware_name()
        self.policy_engine.limits = {
            "max_running_requests": int(self.model_runner.max_running_requests),
            "kv_tokens": int(self.model_runner.max_total_num_tokens),
        }
        group = self._everyone.from_first(secrets.token_hex(6)) if get_parallel().attn_dp_enabled else ""
        if self._agreement.decides:
            self._start_recorder(options_of(self.server_args), group)
            if get_observability().enable_metrics:
                with self._faults.caught("metrics", "the server shows none of ours"):
                    self._start_metrics()

    def _start_metrics(self) -> None:
        engine = self.policy_engine
        metrics = PrometheusObserver(
            sglangs_labels(), lambda: None if engine.recording is None else engine.recording(), engine.calibration
        )
        self.add_observer(metrics)
        engine.drift.listeners.append(metrics.set_drift)
        self._faults.listeners.append(metrics.count_fault)
        engine.trials.listeners.append(metrics.count_trial)

    def _start_recorder(self, options: ServingOptions, group: str) -> None:
        if options.record is None:
            return
        loop = "normal" if get_schedule().disable_overlap_schedule else "overlap"
        parallel = get_parallel()
        rank = parallel.attn_dp_rank if parallel.attn_dp_enabled else parallel.dp_rank or 0
        try:
            observer = recorder.start(
                options.record,
                self.policy_engine,
                self.server_args,
                mode=self._verify_planner.mode_value,
                loop=loop,
                rank=rank,
                texts=options.record_text,
                keep_bytes=record_limit(options),
                group=group,
                limits={
                    **self.policy_engine.limits,
                    "chunked_prefill_size": int(get_schedule().chunked_prefill_size or -1),
                    "attn_dp_size": int(parallel.attn_dp_size),
                },
            )
        except InputError as error:
            raise leave(error) from None
        self.add_observer(observer)
        self.policy_engine.recording = observer.state

    def add_observer(self, observer: StepObserver) -> None:
        """Show every decode step to `observer` (rank 0 only), see `steps`."""
        self.policy_engine.add_observer(observer)

    def init_cuda_graphs(self) -> None:
        """Before capture: the faster kernels. After: price the graph sizes that this engine has."""
        self._choose_kernels()
        self._capture_draft_graphs()
        if torch.device(self.device).type == "cuda" and (memory_mib := get_device_memory_capacity(self.device)):
            self.policy_engine.gpu_memory_gib = memory_mib / 1024
        runner = self.model_runner.decode_cuda_graph_runner
        if runner is not None and runner.ragged_verify_mode:
            batches = [int(size) for size in runner.capture_bs]
            self.policy_engine.use_graphs(batches)
            self._compare_graphs(batches, int(runner.captured_req_width))
        if self._agreement.decides:
            self.policy_engine.prepare_live_decisions(int(self.model_runner.max_running_requests))

    def _capture_draft_graphs(self) -> None:
        """With our kernels, and with SGLang's own where ours cannot be captured."""
        hooks = self.draft_model_runner.capture_tail_hooks if self._hosts_draft else []
        before = list(hooks)
        try:
            super().init_cuda_graphs()
        except Exception as error:
            if not self._kernels:
                raise
            self._faults.note("kernels in CUDA graphs", error, "SGLang's own are captured")
            self._kernels.close()
            hooks[:] = before
            super().init_cuda_graphs()

    def _compare_graphs(self, batches: list[int], width: int) -> None:
        """Say where the rule by which the simulator predicts the graphs of such a server is wrong about this one."""
        if not self._agreement.decides:
            return
        said = start_line.unforeseen_graphs(
            batches,
            Machine(self.policy_engine.gpu_memory_gib, int(get_parallel().tp_size)),
            limit=self.server_args.max_running_requests,
            pool=int(self.model_runner.req_to_token_pool.size),
            width=width,
            alignment=get_cuda_graph_batch_size_alignment(),
        )
        if said:
            logger.warning("%s", said)

    def _choose_kernels(self) -> None:
        """Every rank tries ours beside upstream's, and all ranks install the same ones."""
        trials = attempt(self, options_of(self.server_args).kernels, self._faults)
        mine = {trial.case.name: trial.choice for trial in trials}
        self._kernels = Installed(self, agreed(trials, self._everyone.gather(mine)), self._faults)
        self.policy_engine.kernels = {name: str(choice) for name, choice in self._kernels.choices.items()}
        logger.info("sglang-dspark kernels: %s", "; ".join(map(str, self._kernels.choices.values())))

    def weight_update_runners(self) -> list[tuple[str, Any]]:
        """SGLang asks before every update in place: what was computed from the old weights must not decide again."""
        if self._kernels is not None:
            self._kernels.weights_change()
        self._bounds_wait = True
        return super().weight_update_runners()

    def weight_session(self, opened: bool) -> None:
        """Weights may change at any time while SGLang holds an update session open."""
        self._session_open = opened
        self._bounds_wait = True

    def _follow_weights(self) -> None:
        if self._bounds_wait and not self._session_open:
            self._bounds_wait = False
            if self._kernels is not None:
                self._kernels.weights_changed()

    def forward_batch_generation(
        self, batch: Any, on_publish: Any = None, grammar_barrier: Any = None, **kwargs: Any
    ) -> Any:
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            with self._faults.caught("prefill note"):
                self.policy_engine.note_prefill(list(batch.reqs), int(batch.extend_num_tokens or 0))
        return super().forward_batch_generation(batch, on_publish, grammar_barrier, **kwargs)

    def _forward_decode(
        self, batch: Any, on_publish: Any, grammar_barrier: Any = None, coordination_plan: Any = None
    ) -> Any:
        self._follow_weights()
        if batch.forward_mode.is_idle():
            self.policy_engine.idle(before_forward=False)
        else:
            self.policy_engine.enter(batch, int(batch.forward_iter))
        return super()._forward_decode(batch, on_publish, grammar_barrier, coordination_plan)

    def _dp_verify_tier_num_tokens(self, batch: Any) -> int | None:
        """What every rank of a DP-attention group executes, where SGLang's graphs follow a gathered tier: with a
        mixture-of-experts draft. Upstream gathers budgets known before the draft; ours may be later than that."""
        asked = self.policy_engine.asked
        if asked is None or not (self._draft_is_moe and self._verify_planner.gathers_tier):
            return None
        return max(asked.tokens) if batch.global_num_tokens is not None else None

    def _idle_verify_ragged_layout(self, batch: Any) -> Any:
        asked = self.policy_engine.asked
        if asked is not None and self._verify_planner.pads_eager_batches:
            return cpu_tiers.idle_layout(max(asked.requests), asked.tier(), self.device)
        return super()._idle_verify_ragged_layout(batch)

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        super().note_request_finished(rid=rid, natural_stop=natural_stop)
        with self._faults.caught("finish note"):
            self.policy_engine.note_finished(rid, natural_stop)

    def step_published(self, step: dict[str, Any]) -> None:
        """The arguments of upstream's `observe_verify_step`, for the engine."""
        layout = step["layout"]
        if step["confidence"] is None:
            return
        with self._faults.caught("step outcome", "the step is not published"):
            self.policy_engine.published(
                confidence=step["confidence"],
                lengths=None if layout is None else layout.verify_lens.to(torch.int64) - 1,
                accepted=step["correct_len"].to(torch.int64),
                trimmed=step["cap_trim_lens"].to(torch.int64),
                prefix_lengths=step["prefix_lens"].to(torch.int64),
                executed_tier=0 if layout is None else int(layout.graph_num_tokens),
            )


def _agreement_of(group: Any) -> Agreement:
    """Rank 0 of one of SGLang's groups decides for it."""
    return Agreement(None if group.world_size == 1 else group.cpu_group, group.ranks[0], group.rank)


class StepTap:
    """Upstream's step observers, and ours: one place where a step's segments and outcome pass by."""

    def __init__(self, upstream: Any, worker: PolicyWorker) -> None:
        self._upstream = upstream
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._upstream, name)

    def segment(self, name: Any) -> ExitStack:
        """Time upstream's segment with ours around it."""
        stack = ExitStack()
        ours = _SEGMENTS.get(name)
        if ours is not None:
            stack.enter_context(self._worker.policy_engine.clock.segment(ours))
        stack.enter_context(self._upstream.segment(name))
        return stack

    def observe_verify_step(self, **step: Any) -> None:
        """The step's outcome is known on the device."""
        self._upstream.observe_verify_step(**step)
        self._worker.step_published(step)


@contextmanager
def _planner_replaced() -> Iterator[None]:
    """Upstream's constructor makes its planner by name and hands it around: give it ours under that name."""
    upstream = dspark_worker_v2.DSparkVerifyPlanner
    dspark_worker_v2.DSparkVerifyPlanner = PolicyPlanner
    try:
        yield
    finally:
        dspark_worker_v2.DSparkVerifyPlanner = upstream
