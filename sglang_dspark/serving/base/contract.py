"""What this package overrides, wraps or relies on in SGLang: names, parameters, attributes and constants.

The worker checks its part at start and refuses to run on anything else; kernels and FlashInfer have contracts of their
own (`device_kernels.contract`, `flashinfer_ragged.contract`), and where those moved SGLang's own run. A test checks all
of it, and CI in the wheels of every tested release and of the newest one. Parameters: see `signatures`.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from typing import Any

from sglang_dspark.serving.base.signatures import difference, parameters_of

TESTED = ("0.5.22", "0.5.23")
"""Releases of SGLang that the short live tests have run on, oldest first; the extra `serve` allows this range."""

_DSPARK = "sglang.srt.speculative.dspark_components"
_WORKER = f"{_DSPARK}.dspark_worker_v2.DSparkWorkerV2"
_PLANNER = f"{_DSPARK}.dspark_planner.DSparkVerifyPlanner"
_OBSERVERS = f"{_DSPARK}.dspark_observability.DsparkStepObservers"
_STATE = "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController"
_WEIGHTS = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_KERNELS = "sglang.kernels.ops.speculative"
_ATTENTION = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"

WORKER_CALLS = {
    "sglang.srt.utils.common.get_cuda_graph_batch_size_alignment": "=",
    "sglang.srt.utils.common.get_device_memory_capacity": "device, =",
    f"{_WORKER}.__init__": "self, server_args, gpu_id, nccl_port, target_worker, draft_worker_cls",
    f"{_WORKER}.alloc_memory_pool": "self, **",
    f"{_WORKER}.init_cuda_graphs": "self",
    f"{_WORKER}.forward_batch_generation": "self, batch, on_publish, grammar_barrier, **",
    f"{_WORKER}._forward_decode": "self, batch, on_publish, grammar_barrier, coordination_plan",
    f"{_WORKER}._dp_verify_tier_num_tokens": "self, batch",
    f"{_WORKER}._idle_verify_ragged_layout": "self, batch",
    "sglang.srt.layers.dp_attention.get_dp_tp_group": "",
    "sglang.srt.utils.common.require_mlp_tp_gather": "*moe_a2a_backend",
    f"{_WORKER}.note_request_finished": "self, *rid, *natural_stop",
    f"{_WORKER}.weight_update_runners": "self",
    f"{_PLANNER}.__init__": ("self, **"),
    f"{_PLANNER}.prepare_verify_budget": "self, batch, future_map",
    f"{_PLANNER}.resolve_verify_token_budget": "self, *draft_input, *confidence, *prefix_lens, *req_pool_indices",
    f"{_PLANNER}.schedule_layout": ("self, *req_pool_indices, **"),
    f"{_PLANNER}._schedule_verify_lens": "self, *req_pool_indices, *prefix_lens, *device, *confidence, *budget",
    f"{_PLANNER}.take_budget_decision": "self",
    f"{_PLANNER}.set_forced_budget_frac": "self, frac",
    f"{_PLANNER}.note_non_decode_step": "self",
    f"{_DSPARK}.dspark_planner.local_verify_tier_num_tokens": (
        "*bs, *verify_token_budget, *verify_num_draft_tokens, *min_verify_len, ="
    ),
    f"{_OBSERVERS}.segment": "self, name",
    f"{_OBSERVERS}.observe_verify_step": ("self, *layout, *confidence, *correct_len, *cap_trim_lens, *prefix_lens, **"),
}
"""Looked at by every worker when it starts."""

HOOKED_CALLS = {
    "sglang.srt.server_args.ServerArgs.add_cli_args": "parser",
    "sglang.srt.server_args.ServerArgs.from_cli_args": "args",
    "sglang.srt.arg_groups.resolution_hooks.register_resolution_hook": "name",
    "sglang.srt.arg_groups.speculative_hook.handle_speculative_decoding": "server_args",
    "sglang.srt.arg_groups.speculative_hook._handle_dspark": "server_args",
    "sglang.srt.speculative.spec_info.SpeculativeAlgorithm.create_worker": "self, server_args",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request": "self, obj, input_ids",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_weights_from_disk": "self, obj, request",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._calculate_spec_decoding_metrics": "self, meta_info, **",
    f"{_WEIGHTS}.begin_weight_update": "self, **",
    f"{_WEIGHTS}.end_weight_update": "self, **",
    "sglang.srt.observability.req_time_stats.APIServerReqTimeStats.__getstate__": "self",
    "sglang.srt.observability.req_time_stats.DPControllerReqTimeStats.__getstate__": "self",
    f"{_STATE}.__init__": "self, scheduler, **",
    f"{_STATE}._update_handlers": "self",
    f"{_STATE}._add_speculative": "self, state",
}
"""Wrapped by the plug-in, so only visible as they are before it loads."""

CPU_CALLS = {
    "sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func": (
        "req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, batch_size"
    ),
    f"{_KERNELS}.cache_locs.assign_extend_cache_locs_func": (
        "req_pool_indices, req_to_token, start_offset, end_offset, batch_size, draft_token_num, device"
    ),
    f"{_KERNELS}.reject_sampling.chain_speculative_sampling_triton": (
        "predicts, accept_index, accept_token_num, candidates, retrive_index, retrive_next_token, "
        "retrive_next_sibling, uniform_samples, uniform_samples_for_final_sampling, target_probs, draft_probs, "
        "threshold_single, threshold_acc, deterministic, *block_verification"
    ),
    f"{_KERNELS}.dspark.markov_sample._philox": "key, c0, c1, c2, c3",
    f"{_KERNELS}.dspark.markov_sample.MarkovSampleStep.torch": (
        "*base_logits, *bias, *temperatures, *key, *offset, *step, *step_dtype, *vocab_start, *gather, "
        "*gather_logits, *logits_out, *has_sampled_rows"
    ),
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup": "self",
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._move_kv_cache_impl": "self, tgt_loc, src_loc",
    "sglang.srt.kv_canary.runner.future_tensor.FutureTensors.device_to_host": "xs_device, *d2h_stream",
    "sglang.srt.layers.dp_attention.memcpy_cpu": "dst, src, dim, offset, sz, offset_src",
    "sglang.srt.distributed.parallel_state.reg_all_gather_into_tensor": "output, input, group_name",
    "sglang.srt.distributed.parallel_state.reg_reduce_scatter_tensor": "output, input, group_name",
    "sglang.srt.speculative.spec_info.spec_scale_global_num_tokens": (
        "spec_info, global_num_tokens, global_num_tokens_for_logprob"
    ),
    "sglang.srt.model_executor.forward_batch_info.ForwardBatch.prepare_mlp_sync_batch": "self, model_runner",
    f"{_ATTENTION}.forward_extend": "self, q, k, v, layer, forward_batch, save_kv_cache",
    f"{_ATTENTION}.forward_decode": "self, q, k, v, layer, forward_batch, save_kv_cache",
}
"""Replaced on the CPU platform."""

ATTRIBUTES = {
    _WORKER: (
        "_hosts_draft",
        "_observers",
        "_verify_planner",
        "device",
        "draft_model",
        "draft_model_runner",
        "gamma",
        "model_runner",
        "server_args",
        "target_worker",
    ),
    _PLANNER: ("_is_verify_all", "_schedule_cfg", "_tp_sync", "carries_confidence", "verify_num_draft_tokens"),
    "sglang.srt.model_executor.model_runner.ModelRunner": (
        "decode_cuda_graph_runner",
        "max_running_requests",
        "max_total_num_tokens",
        "req_to_token_pool",
    ),
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner": (
        "capture_bs",
        "captured_req_width",
        "ragged_verify_mode",
    ),
    "sglang.srt.mem_cache.memory_pool.ReqToTokenPool": ("req_generation", "size"),
    "sglang.srt.speculative.ragged_verify.RaggedVerifyLayout": (
        "graph_num_tokens",
        "total_verify_tokens",
        "verify_lens",
        "verify_lens_cpu",
    ),
    "sglang.srt.managers.schedule_batch.Req": ("origin_input_ids", "output_ids", "rid", "sampling_params"),
    "sglang.srt.layers.dp_attention": ("memcpy_func",),
    "sglang.srt.managers.scheduler.Scheduler": ("draft_worker", "waiting_queue", "on_idle"),
}
"""What of SGLang's objects is read or set, by class or module; looked for in its source, see tests/sglang_versions."""

CONSTANTS: dict[str, Any] = {
    "sglang.srt.managers.overlap_utils.CONFIDENCE_RELAY_RING_LAG": 2,
    f"{_DSPARK}.dspark_config.DEFAULT_DSPARK_GAMMA": 7,
}


def moved(calls: dict[str, str], constants: dict[str, Any] | None = None) -> list[str]:
    """One sentence for each entry that the installed SGLang does not match."""
    found = [_difference(target, expected) for target, expected in calls.items()]
    for target, expected in (constants or {}).items():
        value = pkgutil.resolve_name(target)
        found.append(None if value == expected else f"{target} is {value!r}, expected {expected!r}")
    return [sentence for sentence in found if sentence]


def _difference(target: str, expected: str) -> str | None:
    try:
        signature = inspect.signature(pkgutil.resolve_name(target))
    except (AttributeError, ImportError):
        return f"{target} is gone"
    found = difference(expected, parameters_of(signature))
    return found and f"{target} {found}"


def in_range(version: str) -> bool:
    """Whether this release of SGLang is one that was tested, or lies between two that were."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return found is not None and _numbers(TESTED[0]) <= tuple(map(int, found.groups())) <= _numbers(TESTED[-1])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
