"""Ragged FlashInfer planning without a GPU: plans are recorded and run by a reference attention over the same paged
KV."""

import inspect
import pkgutil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.serving.gpu.flashinfer_ragged.plan import GHOST_SLOT, plan_ragged_verify

NO_SGLANG = "needs the extra `serve`"


@st.composite
def batches(draw):
    num_requests = draw(st.integers(1, 6))
    verify = draw(st.lists(st.integers(1, 8), min_size=num_requests, max_size=num_requests))
    prefix = draw(st.lists(st.integers(0, 20), min_size=num_requests, max_size=num_requests))
    return verify, prefix, sum(verify) + draw(st.integers(0, 9)), num_requests + draw(st.integers(0, 4))


@given(batches())
@settings(deadline=None)
def test_plan_covers_the_tier_exactly(batch):
    verify, prefix, tier, slots = batch
    plan = plan_ragged_verify(verify, prefix, graph_num_tokens=tier, slots=slots)
    q_lens = [end - start for start, end in zip(plan.qo_indptr, plan.qo_indptr[1:], strict=False)]
    assert len(q_lens) == slots + 1 == len(plan.kv_lens)
    assert plan.qo_indptr[-1] == tier
    assert q_lens[: len(verify)] == verify
    assert plan.kv_lens[: len(verify)] == tuple(p + v for p, v in zip(prefix, verify, strict=True))
    assert set(q_lens[len(verify) : -1]) <= {0} and set(plan.kv_lens[len(verify) : -1]) <= {0}
    assert q_lens[-1] == plan.kv_lens[-1] == plan.ghost_tokens == tier - sum(verify)
    # FlashInfer's causal mask is aligned at the end: every row must own at least as many keys as queries.
    assert all(kv >= q for q, kv in zip(q_lens, plan.kv_lens, strict=True))


@pytest.mark.parametrize(
    ("verify", "prefix", "tier", "slots", "message"),
    [
        ([1, 1, 1], [5, 5, 5], 8, 2, "do not fit the 2 slots"),
        ([8, 8], [5, 5], 8, 8, "do not fit the captured tier of 8"),
        ([0, 1], [5, 5], 8, 8, "at least its anchor"),
        ([1], [5, 6], 8, 8, "1 verify lengths but 2"),
        ([], [], 8, 8, "0 requests"),
    ],
)
def test_plan_refuses_what_does_not_fit(verify, prefix, tier, slots, message):
    with pytest.raises(ValueError, match=message):
        plan_ragged_verify(verify, prefix, graph_num_tokens=tier, slots=slots)


class RecordingWrapper:
    """Stands for FlashInfer's CUDA-graph wrapper: keeps what a captured kernel would read."""

    def __init__(self, torch, backend, slots):
        self.torch, self.slots, self.calls = torch, slots, []
        self.device = torch.device("cpu")
        self._backend, self.is_cuda_graph_enabled, self._max_total_num_rows = "fa2", True, None
        self._qo_indptr_buf = backend._ragged_qo_indptr[: slots + 2]
        self._paged_kv_indptr_buf = backend._ragged_kv_indptr[: slots + 2]
        self._paged_kv_indices_buf = backend.cuda_graph_kv_indices[0]
        self._paged_kv_last_page_len_buf = backend._ragged_page_len[: slots + 1]
        self._float_workspace_buffer = self._int_workspace_buffer = None
        self._pin_memory_int_workspace_buffer = torch.zeros(4, dtype=torch.uint8)
        self._cached_module = SimpleNamespace(plan=self.record)

    def begin_forward(self, qo_indptr, kv_indptr, kv_indices, page_len, *shape, **dtypes):
        """The planner that FlashInfer runs at capture; it fixes the total."""
        self._max_total_num_rows = int(qo_indptr[-1])
        self._qo_indptr_buf.copy_(qo_indptr)
        self._paged_kv_indptr_buf.copy_(kv_indptr)

    def record(self, *arguments):
        self.calls.append(arguments)

    def attend(self, query, keys, values):
        """Causal attention, aligned at the end, as the captured kernel computes it from its buffers."""
        torch, out = self.torch, self.torch.full_like(query, float("nan"))
        qo, kv = self._qo_indptr_buf.tolist(), self._paged_kv_indptr_buf.tolist()
        for row in range(len(qo) - 1):
            q = query[qo[row] : qo[row + 1]]
            slots = self._paged_kv_indices_buf[kv[row] : kv[row + 1]].long()
            mask = torch.ones(len(q), len(slots), dtype=torch.bool).tril(len(slots) - len(q))
            if len(q):
                scores = (q @ keys[slots].T / q.shape[1] ** 0.5).masked_fill(~mask, float("-inf"))
                out[qo[row] : qo[row + 1]] = torch.softmax(scores, -1) @ values[slots]
        return out


class Translator:
    """SGLang's translator for a static pool, in torch: the same signature, checked by the contract test."""

    def __init__(self, req_to_token):
        self.req_to_token = req_to_token

    def pack_read_stream(self, plan, *, req_pool_indices, seq_lens, indptr, out, **options):
        for request, pool in enumerate(req_pool_indices.tolist()):
            length = int(seq_lens[request])
            out[int(indptr[request]) : int(indptr[request]) + length] = self.req_to_token[pool, :length]


@pytest.fixture(scope="module")
def ragged():
    pytest.importorskip("torch", reason=NO_SGLANG)
    pytest.importorskip("sglang", reason=NO_SGLANG)
    from sglang_dspark.serving.gpu.flashinfer_ragged import backend

    return backend


def bare_backend(ragged, torch, max_bs, pool, device="cpu"):
    """Our backend with the state that planning reads, without a model runner."""
    made = object.__new__(ragged.FlashInferAttnBackend)
    made.dispatch_reason, made.prefill_backend, made.prefill_uses_dequant_workspace = None, "fa2", False
    made.kv_last_page_len = torch.ones(max_bs, dtype=torch.int32, device=device)
    made.cuda_graph_kv_indices = [torch.full((4096,), -1, dtype=torch.int32, device=device)]
    made._ragged_qo_indptr, made._ragged_kv_indptr = (
        torch.zeros(max_bs + 2, dtype=torch.int32, device=device) for _ in range(2)
    )
    made._ragged_page_len = torch.ones(max_bs + 1, dtype=torch.int32, device=device)
    made._tiers, made._stages, made._stage_index = {}, [], 0
    made.indices_updater_prefill = SimpleNamespace(
        num_qo_heads=4, num_kv_heads=2, head_dim=8, q_data_type=torch.bfloat16, data_type=torch.bfloat16
    )
    made.kv_index_translator = Translator(pool)
    if device == "cpu":
        made._create_ragged_wrapper = lambda slots: RecordingWrapper(torch, made, slots)
    return made


def batch_view(torch, layout, pools, slots, prefix, verify, host_lens, in_capture=False):
    """What SGLang's graph runner hands to the backend: buffers padded to the captured slots."""
    padding = slots - len(pools)
    extended = torch.tensor([p + v for p, v in zip(prefix, verify, strict=True)] + [1] * padding)
    return SimpleNamespace(
        batch_size=slots,
        num_padding=padding,
        forward_mode=SimpleNamespace(is_target_verify=lambda: True),
        spec_info=SimpleNamespace(
            ragged_verify_layout=layout, live_seq_lens_cpu=None if in_capture else torch.tensor(prefix)
        ),
        req_pool_indices=torch.tensor(pools + [0] * padding),
        seq_lens_cpu=extended if host_lens else None,
        kv_loc_plan=None,
    )


@pytest.mark.parametrize("host_known", [True, False], ids=["host lengths", "device lengths"])
def test_replays_attend_as_the_reference(ragged, host_known):
    import torch
    from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout, build_capture_verify_lens

    torch.manual_seed(0)
    width, pool = 8, torch.randperm(600)[:400].view(8, 50) + 1
    backend = bare_backend(ragged, torch, max_bs=6, pool=pool)
    tier, slots = 24, 6
    cpu = torch.device("cpu")
    capture = RaggedVerifyLayout.from_verify_lens(
        verify_lens_cpu=build_capture_verify_lens(num_tokens=tier, num_slots=slots, num_draft_tokens=width),
        device=cpu,
        grid=[tier],
    )
    view = batch_view(torch, capture, list(range(6)), slots, [1] * 6, [4] * 6, True, in_capture=True)
    backend.init_forward_metadata_out_graph(view, in_capture=True)
    wrapper = backend._tiers[tier]
    keys, values = torch.randn(700, 8), torch.randn(700, 8)
    for verify, prefix in (
        [[8, 1, 3], [30, 5, 17]],
        [[8, 8, 8], [0, 2, 40]],
        [[1], [9]],
        [[1, 2, 3, 4, 5, 8], [1, 2, 3, 4, 5, 6]],
    ):
        pools = list(range(1, 1 + len(verify)))
        device_layout = RaggedVerifyLayout.from_verify_lens_device(
            verify_lens=torch.tensor(verify, dtype=torch.int32), graph_num_tokens=tier
        )
        host_layout = RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=verify, device=cpu, grid=[tier])
        layout = host_layout if host_known else device_layout
        backend.init_forward_metadata_out_graph(batch_view(torch, layout, pools, slots, prefix, verify, True))
        query = torch.randn(tier, 8)
        got = wrapper.attend(query, keys, values)
        row = 0
        for pool_row, length, before in zip(pools, verify, prefix, strict=True):
            for step in range(length):
                seen = pool[pool_row, : before + step + 1]
                weights = torch.softmax(query[row] @ keys[seen].T / 8**0.5, -1)
                torch.testing.assert_close(got[row], weights @ values[seen])
                row += 1
        assert torch.isfinite(got).all(), "padding rows are written too"
        assert set(wrapper._paged_kv_indices_buf[: int(wrapper._paged_kv_indptr_buf[-1])].tolist()) <= {
            GHOST_SLOT,
            *pool.flatten().tolist(),
        }


def test_replay_plans_what_was_captured(ragged):
    """Batch size and total rows never change; the host arguments equal the buffers on the device."""
    import torch
    from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

    backend = bare_backend(ragged, torch, max_bs=4, pool=torch.arange(200).view(4, 50))
    capture = RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=[4, 4, 4, 4], device=torch.device("cpu"), grid=[16])
    backend.init_forward_metadata_out_graph(
        batch_view(torch, capture, [0, 1, 2, 3], 4, [1] * 4, [4] * 4, True, True), in_capture=True
    )
    wrapper = backend._tiers[16]
    for verify, prefix in ([[2, 3], [10, 20]], [[8, 1, 1], [3, 4, 5]]):
        layout = RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=verify, device=torch.device("cpu"), grid=[16])
        backend.init_forward_metadata_out_graph(
            batch_view(torch, layout, list(range(len(verify))), 4, prefix, verify, True)
        )
        (_, _, pinned, qo, kv, lens, rows, batch, heads, kv_heads, page, graph, *_rest) = wrapper.calls[-1]
        assert (rows, batch, heads, kv_heads, page, graph) == (16, 5, 4, 2, 1, True)
        assert torch.equal(qo, wrapper._qo_indptr_buf) and torch.equal(kv, wrapper._paged_kv_indptr_buf)
        assert lens.tolist()[: len(verify)] == [p + v for p, v in zip(prefix, verify, strict=True)]
        assert any(pinned is stage.buffer for stage in backend._stages)
    assert len({call[2].data_ptr() for call in wrapper.calls}) == 2, "two pinned buffers take turns"


def test_uniform_batches_take_upstreams_path(ragged, monkeypatch):
    import torch

    seen = []
    upstream = ragged.upstream.FlashInferAttnBackend
    monkeypatch.setattr(
        upstream, "init_forward_metadata_out_graph", lambda self, batch, in_capture=False: seen.append(batch)
    )
    backend = bare_backend(ragged, torch, 2, None)
    batch = batch_view(torch, None, [0], 1, [1], [1], True)
    backend.init_forward_metadata_out_graph(batch)
    assert seen == [batch]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dispatch_reason": "swa"}, "sliding-window"),
        ({"prefill_backend": "fa3"}, "fa3"),
        ({"prefill_uses_dequant_workspace": True}, "dequantised"),
    ],
)
def test_what_cannot_run_is_named(ragged, change, reason):
    import torch

    backend = bare_backend(ragged, torch, 2, None)
    assert backend.supports_ragged_verify_graph
    for name, value in change.items():
        setattr(backend, name, value)
    assert not backend.supports_ragged_verify_graph
    layout = SimpleNamespace(graph_num_tokens=8)
    with pytest.raises(SystemExit):
        backend.init_forward_metadata_out_graph(batch_view(torch, layout, [0], 1, [1], [1], True))


def test_a_batch_without_host_lengths_is_refused(ragged):
    import torch

    backend = bare_backend(ragged, torch, 2, None)
    layout = SimpleNamespace(graph_num_tokens=8, verify_lens_cpu=None)
    with pytest.raises(ValueError, match="on the host"):
        backend.init_forward_metadata_out_graph(batch_view(torch, layout, [0], 1, [1], [1], False))


def test_eager_plans_with_lengths_on_the_device(ragged):
    """Upstream fails here: it sizes the K/V indices by a total that a device-only layout does not know."""
    import torch
    from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

    planned = []
    backend = bare_backend(ragged, torch, 4, torch.arange(200).view(4, 50))
    backend.prefill_wrappers_verify = [SimpleNamespace(begin_forward=lambda *inputs, **options: planned.append(inputs))]
    layout = RaggedVerifyLayout.from_verify_lens_device(
        verify_lens=torch.tensor([3, 1], dtype=torch.int32), graph_num_tokens=6
    )
    backend.init_forward_metadata(batch_view(torch, layout, [1, 2], 2, [5, 7], [3, 1], True))
    qo_indptr, kv_indptr, kv_indices, page_len, *shape = planned[0]
    assert (qo_indptr.tolist(), kv_indptr.tolist()) == ([0, 3, 4, 6], [0, 8, 16, 18])
    assert kv_indices.tolist() == [*range(50, 58), *range(100, 108), GHOST_SLOT, GHOST_SLOT]
    assert (page_len.tolist(), shape) == ([1, 1, 1], [4, 2, 8, 1])


def test_upstream_is_what_was_overridden(ragged):
    from sglang.srt.layers.attention import flashinfer_backend
    from sglang.srt.speculative import dflash_utils

    from sglang_dspark.serving.base.contract import moved
    from sglang_dspark.serving.gpu.flashinfer_ragged.contract import ATTRIBUTES, CALLS, WRAPPER_ATTRIBUTES

    assert moved(CALLS) == []
    set_by_upstream = set(flashinfer_backend.FlashInferAttnBackend.__init__.__code__.co_names)
    set_by_upstream |= set(flashinfer_backend.FlashInferAttnBackend.init_cuda_graph_state.__code__.co_names)
    assert set(ATTRIBUTES) <= set_by_upstream
    assert ragged.FlashInferAttnBackend.__name__ in dflash_utils._DFLASH_VERIFY_SKIP_CUSTOM_MASK_BACKENDS
    assert hasattr(flashinfer_backend.AttentionBackend, "supports_ragged_verify_graph")
    module = pkgutil.resolve_name("flashinfer.prefill")
    source = inspect.getsource(module.BatchPrefillWithPagedKVCacheWrapper)
    assert [name for name in WRAPPER_ATTRIBUTES if f"self.{name}" not in source] == []
    plan = inspect.signature(module.BatchPrefillWithPagedKVCacheWrapper.plan)
    assert " ".join(list(plan.parameters)[1:9]) == (
        "qo_indptr paged_kv_indptr paged_kv_indices paged_kv_last_page_len num_qo_heads num_kv_heads head_dim_qk "
        "page_size"
    )


def test_register_replaces_the_backend_once(monkeypatch):
    pytest.importorskip("sglang", reason=NO_SGLANG)
    from sglang.srt.layers.attention import attention_registry

    from sglang_dspark.serving.gpu.flashinfer_ragged import register

    monkeypatch.setattr(attention_registry, "ATTENTION_BACKENDS", {"flashinfer": lambda runner: "upstream's"})
    register()
    ours = attention_registry.ATTENTION_BACKENDS["flashinfer"]
    register()
    assert attention_registry.ATTENTION_BACKENDS["flashinfer"] is ours
    assert ours(SimpleNamespace(use_mla_backend=True)) == "upstream's"


@pytest.mark.gpu
def test_a_captured_graph_attends_as_the_reference():
    """FlashInfer's own kernel: one capture of a tier, then replays with other lengths, against torch attention."""
    torch = pytest.importorskip("torch", reason=NO_SGLANG)
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("sglang", reason=NO_SGLANG)
    from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

    from sglang_dspark.serving.gpu.flashinfer_ragged import backend as ragged

    torch.manual_seed(0)
    heads, kv_heads, dim, tier, slots = 8, 2, 128, 16, 4
    device = torch.device("cuda")
    pool = (torch.randperm(600)[:400].view(8, 50) + 1).to(device)
    backend = bare_backend(ragged, torch, slots, pool, "cuda")
    backend.workspace_buffer = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    updater = backend.indices_updater_prefill
    updater.num_qo_heads, updater.num_kv_heads, updater.head_dim = heads, kv_heads, dim
    keys, values = torch.randn(2, 700, kv_heads, dim, device=device).bfloat16()
    query = torch.zeros(tier, heads, dim, device=device).bfloat16()

    def view(verify, prefix, in_capture=False):
        layout = RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=verify, device=device, grid=[tier])
        made = batch_view(torch, layout, list(range(len(verify))), slots, prefix, verify, True, in_capture)
        made.req_pool_indices = made.req_pool_indices.to(device)
        return made

    backend.init_forward_metadata_out_graph(view([4] * 4, [1] * 4, True), in_capture=True)
    wrapper = backend._tiers[tier]
    out = torch.empty_like(query)
    attend = lambda: out.copy_(wrapper.forward(query, (keys, values), causal=True, sm_scale=dim**-0.5))  # noqa: E731
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        attend()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    for verify, prefix in ([[8, 1, 3], [30, 5, 17]], [[8, 8], [0, 40]], [[1], [9]], [[1, 2, 3, 8], [1, 2, 3, 4]]):
        backend.init_forward_metadata_out_graph(view(verify, prefix))
        query.normal_()
        out.fill_(float("nan"))
        graph.replay()
        row = 0
        for request, (length, before) in enumerate(zip(verify, prefix, strict=True)):
            seen = pool[request, : before + length]
            k, v = (each[seen].transpose(0, 1).repeat_interleave(heads // kv_heads, 0) for each in (keys, values))
            mask = torch.ones(length, len(seen), dtype=torch.bool, device=device).tril(before)
            want = torch.nn.functional.scaled_dot_product_attention(
                query[row : row + length].transpose(0, 1), k, v, mask
            )
            torch.testing.assert_close(out[row : row + length], want.transpose(0, 1), rtol=2e-2, atol=2e-2)
            row += length
        assert torch.isfinite(out).all(), "padding rows are written too"
