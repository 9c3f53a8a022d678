"""The core's rule for SGLang's graphs and limits against SGLang's own functions; only the device's memory is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("sglang", reason="needs the extra `serve`")

from sglang.srt.arg_groups import deepseek_v4_hook, memory_hook, speculative_hook  # noqa: E402
from sglang.srt.arg_groups.cuda_graph_hook import parse_cuda_graph_config  # noqa: E402
from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view  # noqa: E402
from sglang.srt.managers.min_free_slots_delayer import resolve_min_free_slots  # noqa: E402
from sglang.srt.mem_cache import kv_cache_configurator  # noqa: E402
from sglang.srt.model_executor.cuda_graph_config import Phase, with_phase  # noqa: E402
from sglang.srt.model_executor.runner import base_cuda_graph_runner as runner  # noqa: E402
from sglang.srt.server_args import ServerArgs  # noqa: E402
from sglang.srt.speculative.dspark_components import dspark_config  # noqa: E402
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm  # noqa: E402
from sglang.srt.utils import common  # noqa: E402

from sglang_dspark.cost.graphs import (  # noqa: E402
    Machine,
    captured_batches,
    free_slots_awaited,
    listed_batches,
    request_pool,
)
from sglang_dspark.errors import InputError  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.short]

WIDTH = 8  # gamma + 1


def resolved(patch: pytest.MonkeyPatch, machine: Machine, drafting: bool, limit: int | None) -> Any:
    """SGLang's arguments after its own hooks for GPU memory, model and speculation, in the pipeline's order."""
    memory = None if machine.gpu_memory_gib is None else machine.gpu_memory_gib * 1024  # nvidia-smi's MiB
    patch.setattr(memory_hook, "get_device_memory_capacity", lambda device=None: memory)
    patch.setattr(deepseek_v4_hook, "run_post_process_pass", lambda *_: None)  # the KV dtype, by the model's config
    patch.setattr(dspark_config, "read_draft_checkpoint_config", lambda **_: None)  # there are no files
    drafts = {"speculative_algorithm": "DSPARK", "speculative_draft_model_path": "d"} if drafting else {}
    arguments = ServerArgs(
        model_path="m",
        device="cuda",
        tp_size=machine.tp,
        mem_fraction_static=0.8,
        max_running_requests=limit,
        dsv4_attn_backend="flashmla",
        **drafts,
        **({"speculative_dspark_block_size": WIDTH - 1} if drafting else {}),
    )
    parse_cuda_graph_config(arguments)
    # Prefill graphs would look at the model.
    prefill = with_phase(resolving_view(arguments).cuda_graph_config, Phase.PREFILL, max_bs=4096, bs=[4])
    declare_resolution(arguments, "test", cuda_graph_config=prefill)
    memory_hook.handle_gpu_memory_settings(arguments)
    if machine.deepseek_v4:
        deepseek_v4_hook.apply_deepseek_v4_defaults(arguments, "DeepseekV4ForCausalLM")
    if drafting:
        speculative_hook._handle_dspark(arguments)
    return resolving_view(arguments)


def pool_of(patch: pytest.MonkeyPatch, limit: int | None, kv_tokens: int, context_length: int) -> int:
    """SGLang's size of the request pool."""
    patch.setattr(kv_cache_configurator, "get_schedule", lambda: SimpleNamespace(max_running_requests=limit))
    model = SimpleNamespace(context_len=context_length)
    of = SimpleNamespace(model_config=model, attn_dp_size=1, mambaish_config=None)
    return int(kv_cache_configurator.KVCacheConfigurator.resolve_max_num_reqs(of, kv_tokens))


def captured(patch: pytest.MonkeyPatch, view: Any, pool: int, width: int, alignment: int) -> list[int]:
    """SGLang's captured batch sizes."""
    execution = SimpleNamespace(
        graph=SimpleNamespace(cuda_graph_config=view.cuda_graph_config),
        overlap=SimpleNamespace(enable_two_batch_overlap=False),
    )
    for module in (runner, common):
        patch.setattr(module, "get_exec", lambda: execution)
    parallel = SimpleNamespace(attn_tp_size=alignment, attn_cp_size=1)
    patch.setattr(common, "get_parallel", lambda: parallel)
    flags = SimpleNamespace(capture=SimpleNamespace(enable_torch_compile=False))
    patch.setattr(runner, "get_flags", lambda: flags)
    of = SimpleNamespace(
        req_to_token_pool=SimpleNamespace(size=pool), server_args=ServerArgs(model_path="m", device="cuda")
    )
    return runner.get_batch_sizes_to_capture(of, width, gathered_buffer_required=alignment > 1)[0]


def check(machine: Machine, *, drafting: bool, limit: int | None, kv_tokens: int, alignment: int = 1) -> list[int]:
    """Rule and SGLang agree on chunk, limit, pool and captured sizes; returns the captured sizes."""
    width = WIDTH if drafting else 1
    with pytest.MonkeyPatch.context() as patch:
        view = resolved(patch, machine, drafting, limit)
        assert machine.prefill_chunk() == view.chunked_prefill_size
        own = limit if limit is not None else machine.running_limit(drafting=drafting)
        assert own == view.max_running_requests
        pool = pool_of(patch, view.max_running_requests, kv_tokens, 40_960)
        assert request_pool(own, kv_tokens, 40_960) == pool
        listed = listed_batches(machine.graph_limit(limit), drafting=drafting)
        try:
            found = captured(patch, view, pool, width, alignment)
        except AssertionError:  # SGLang does not start with nothing to capture
            with pytest.raises(InputError, match="no batch size"):
                captured_batches(listed, pool, width=width, alignment=alignment)
            return []
    assert list(captured_batches(listed, pool, width=width, alignment=alignment)) == found
    return found


@pytest.mark.parametrize("limit", [1, 7, 8, 13, 19, 24, 48, 256])
def test_free_slots(limit: int) -> None:
    found = resolve_min_free_slots(None, limit, is_dflash_family=SpeculativeAlgorithm.DSPARK.is_dflash_family())
    assert free_slots_awaited(limit, drafting=True) == (1 if found is None else found)
    assert resolve_min_free_slots(None, limit) is None and free_slots_awaited(limit, drafting=False) == 1


def test_dspark_on_an_8b_model_at_80_gb() -> None:
    """An H100: nvidia-smi's 81,559 MiB. 48 requests run, so the last verify graph holds 384 tokens."""
    machine = Machine.of({"model": "Qwen3-8B"}, 81_559 / 1024, 1)
    sizes = check(machine, drafting=True, limit=None, kv_tokens=400_000)
    assert sizes == [*range(1, 9), *range(10, 33, 2), 40, 44, 48]


def test_deepseek_v4_at_8_x_180_gb() -> None:
    """Eight B200, TP 8: 256 requests run, with the draft or without."""
    machine = Machine.of({"model": "DeepSeek-V4-Pro"}, 183_359 / 1024, 8)
    assert check(machine, drafting=True, limit=None, kv_tokens=2_000_000)[-3:] == [240, 248, 256]
    assert check(machine, drafting=False, limit=None, kv_tokens=2_000_000)[:6] == [1, 2, 4, 8, 12, 16]


@pytest.mark.parametrize(
    ("gib", "tp", "most"), [(15.9, 1, 8), (23.9, 1, 48), (23.9, 4, 160), (44.9, 2, 32), (47.9, 8, 160)]
)
def test_small_gpus(gib: float, tp: int, most: int) -> None:
    machine = Machine.of({}, gib, tp)
    assert check(machine, drafting=True, limit=None, kv_tokens=50_000)[-1] == min(most, 48)
    assert check(machine, drafting=False, limit=None, kv_tokens=50_000)[-1] == most


@pytest.mark.parametrize("limit", [1, 3, 37, 47, 50, 255, 300, 1000])
def test_odd_pools(limit: int) -> None:
    """The pool's size is a graph of its own; beyond what memory allows there is none."""
    machine = Machine.of({}, 79.6, 1)
    assert check(machine, drafting=True, limit=limit, kv_tokens=400_000)[-1] == min(limit, 256)
    check(machine, drafting=True, limit=limit, kv_tokens=61)  # a pool that the KV memory cuts


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.none(), st.floats(8, 320)),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 1100)),
    st.integers(100, 5_000_000),
    st.sampled_from([1, 2, 4, 8]),
)
def test_any_machine(
    gib: float | None, tp: int, v4: bool, drafting: bool, limit: int | None, kv_tokens: int, alignment: int
) -> None:
    machine = Machine.of({"model": "DeepSeek-V4-Flash" if v4 else "Qwen3-4B"}, gib, tp)
    check(machine, drafting=drafting, limit=limit, kv_tokens=kv_tokens, alignment=alignment)


def test_the_worker_names_graphs_that_were_not_foreseen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sglang_dspark.serving.loop import worker

    of = SimpleNamespace(
        _agreement=SimpleNamespace(decides=True),
        policy_engine=SimpleNamespace(gpu_memory_gib=79.6),
        server_args=SimpleNamespace(max_running_requests=None),
        model_runner=SimpleNamespace(req_to_token_pool=SimpleNamespace(size=48)),
    )
    monkeypatch.setattr(worker, "get_parallel", lambda: SimpleNamespace(tp_size=1))
    monkeypatch.setattr(worker, "get_cuda_graph_batch_size_alignment", lambda: 1)
    foreseen = list(captured_batches(listed_batches(256, drafting=True), 48, width=WIDTH))
    worker.PolicyWorker._compare_graphs(of, foreseen, WIDTH)  # type: ignore[arg-type]
    assert not caplog.messages
    worker.PolicyWorker._compare_graphs(of, [1, 2, 4, 8], WIDTH)  # type: ignore[arg-type]
    assert "simulate it with --graphs 1,2,4,8" in caplog.messages[0]
