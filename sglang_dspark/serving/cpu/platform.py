"""The platform class that SGLang instantiates on a machine without an accelerator."""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.arg_groups import choices
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from sglang_dspark.cores import available_cores
from sglang_dspark.serving.base.refusal import leave
from sglang_dspark.serving.cpu import reference_ops

ATTENTION_BACKEND = "torch_native"
SERVED_ALGORITHMS = ("DSPARK",)
MAX_THREADS = 16
SMALL_MODEL_PARAMETERS = 50_000_000
DEFAULT_TOTAL_TOKENS = 65536


class ReferenceCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang on plain torch CPU kernels: reference attention, float32, no graphs, no Triton."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def __init__(self) -> None:
        super().__init__()
        self._num_parameters = 0
        if ATTENTION_BACKEND not in choices.DRAFT_ATTENTION_BACKEND_CHOICES:
            choices.add_draft_attention_backend_choices([ATTENTION_BACKEND])

    def get_device(self, device_id: int | None = 0) -> Any:
        """The one CPU device; the plain string where SGLang asks for the default of `--device`."""
        return "cpu" if device_id is None else torch.device("cpu")

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Defaults for fields that the user left open; whatever was set on the command line stays."""
        if server_args.dtype == "auto":
            # bfloat16 has no fast CPU path here and would take SGLang's fused Triton writes.
            server_args.dtype = "float32"
        elif server_args.speculative_algorithm and server_args.dtype not in ("float32", "float"):
            raise leave(f"--dtype {server_args.dtype} is refused without an accelerator, expected float32")
        if server_args.attention_backend is None:
            server_args.attention_backend = ATTENTION_BACKEND
        if server_args.speculative_draft_attention_backend is None:
            server_args.speculative_draft_attention_backend = ATTENTION_BACKEND
        # Nothing is captured on this platform; saying so keeps SGLang from building the in-graph samplers.
        server_args.disable_decode_cuda_graph = True
        if server_args.enable_dp_attention or (server_args.attn_dp_size or 1) > 1:
            # SGLang refuses a dense draft under DP attention as long as its resolved configuration captures.
            graphs = copy.deepcopy(server_args.cuda_graph_config)
            graphs.decode.backend = "disabled"
            server_args.cuda_graph_config = graphs
        if server_args.max_total_tokens is None:
            # Host memory is shared with everything else: never claim most of it for the KV cache.
            server_args.max_total_tokens = DEFAULT_TOTAL_TOKENS
        # SGLang wants a NUMA node per rank unless told which cores each has; nothing is bound on this platform.
        num_ranks = server_args.tp_size * server_args.dp_size
        every_core = f"0-{(os.cpu_count() or 1) - 1}"
        os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", "|".join([every_core] * num_ranks))

    def get_default_attention_backend(self) -> str:
        return ATTENTION_BACKEND

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        return ATTENTION_BACKEND

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        return algorithm in SERVED_ALGORITHMS

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        return backend == ATTENTION_BACKEND

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        if kind != "mha":
            return None
        from sglang_dspark.serving.cpu.kv_pool import ReferenceKVPool

        return ReferenceKVPool

    def get_speculative_cache_locs_fn(self) -> Callable[..., torch.Tensor]:
        return reference_ops.packed_cache_locs

    def init_backend(self) -> None:
        """Called once in every worker process, when SGLang's model runner is imported."""
        reference_ops.install()
        set_threads()

    def post_load_model(self, model: torch.nn.Module) -> None:
        """After a model is loaded: the larger of target and draft decides how many threads pay."""
        self._num_parameters = max(self._num_parameters, sum(weight.numel() for weight in model.parameters()))
        set_threads(self._num_parameters)


def set_threads(num_parameters: int = 0) -> None:
    """Give torch as many unpinned threads as a model of this size can use.

    A step of a small model is thousands of tiny operators: with several OpenMP threads their barriers cost more than
    the work, ten times as much when the cores are busy. OMP_NUM_THREADS, when set, is what the user wants.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    small = num_parameters < SMALL_MODEL_PARAMETERS
    torch.set_num_threads(1 if small else max(1, min(MAX_THREADS, available_cores() - 1)))
