"""The torch references of the CPU platform against plain loops, and when the platform is offered."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the references are torch code")
pytest.importorskip("sglang", reason="needs the extra `serve`")

from sglang_dspark.serving import cpu  # noqa: E402
from sglang_dspark.serving.cpu import reference_ops  # noqa: E402


def _ragged_case(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randperm(6 * 40, generator=generator).view(6, 40).to(torch.int32)
    indices = torch.randperm(6, generator=generator)[:4]
    start = torch.randint(0, 20, (4,), generator=generator)
    width = torch.randint(0, 9, (4,), generator=generator)
    return table, indices, start, start + width


@pytest.mark.parametrize("seed", range(5))
def test_cache_locs_are_packed_by_end_offset(seed: int) -> None:
    table, indices, start, end = _ragged_case(seed)
    expected = [int(table[i, c]) for i, s, e in zip(indices, start, end, strict=True) for c in range(s, e)]
    locations = reference_ops.packed_cache_locs(indices, table, start, end, 4, 8, "cpu")
    assert locations.shape == (32,) and locations.dtype == torch.int64
    assert locations[: len(expected)].tolist() == expected
    assert not locations[len(expected) :].any()


@pytest.mark.parametrize("seed", range(5))
def test_pool_rows_receive_packed_slots(seed: int) -> None:
    table, indices, start, end = _ragged_case(seed)
    slots = 1000 + torch.arange(int((end - start).sum()))
    expected, cursor = table.clone(), 0
    for row, first, last in zip(indices.tolist(), start.tolist(), end.tolist(), strict=True):
        expected[row, first:last] = slots[cursor : cursor + last - first].to(torch.int32)
        cursor += last - first
    reference_ops.assign_req_to_token_pool(indices, table, start, end, slots, 4)
    assert torch.equal(table, expected)


def test_philox_equals_sglangs() -> None:
    from sglang.kernels.ops.speculative.dspark import markov_sample

    original = getattr(markov_sample._philox, "__wrapped__", markov_sample._philox)
    if original is reference_ops.philox:
        pytest.skip("the references are installed in this process already")
    counters = (
        torch.arange(64)[None],
        torch.arange(5)[:, None],
        torch.full((1, 1), 3, dtype=torch.int64),
        torch.tensor([[2**32 - 1]]),
    )
    for ours, theirs in zip(reference_ops.philox(2**62 + 7, *counters), original(2**62 + 7, *counters), strict=True):
        assert torch.equal(*torch.broadcast_tensors(ours, theirs))


def _sample_chain(target: torch.Tensor, draft: torch.Tensor, drafted: torch.Tensor, coins: torch.Tensor):
    requests, width = drafted.shape[0], target.shape[1]
    index = torch.arange(requests * width, dtype=torch.int32).view(requests, width)
    predicts = torch.full((requests * width,), -1, dtype=torch.int32)
    accept_index = torch.full((requests, width), -1, dtype=torch.int32)
    accepted = torch.zeros(requests, dtype=torch.int32)
    candidates = torch.cat([torch.zeros(requests, 1, dtype=torch.int64), drafted], dim=1)
    arguments = (predicts, accept_index, accepted, candidates, index, index, index)
    reference_ops.chain_speculative_sampling(*arguments, coins[:, :-1], coins[:, -1], target, draft, 1.0, 1.0, True)
    return predicts.view(requests, width), accept_index, accepted


def test_rejection_sampling_follows_the_target() -> None:
    """Chi-square of the first emitted token, and of the second where the first was kept, against the target."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, samples = 7, 200_000
    law = torch.softmax(torch.randn(1, 3, vocabulary, generator=generator) * 1.5, -1)
    proposal = torch.softmax(torch.randn(1, 2, vocabulary, generator=generator) * 1.5, -1)
    target = law.expand(samples, -1, -1).contiguous()
    draft = proposal.expand(samples, -1, -1).contiguous()
    drafted = torch.stack([torch.multinomial(draft[:, j], 1, generator=generator)[:, 0] for j in (0, 1)], 1)
    coins = torch.rand(samples, 3, generator=generator)
    tokens, _, accepted = _sample_chain(target, draft, drafted, coins)
    for position, rows in ((0, slice(None)), (1, accepted >= 1), (2, accepted == 2)):
        observed = torch.bincount(tokens[rows, position].long(), minlength=vocabulary).double()
        expected = law[0, position].double() * observed.sum()
        chi_square = float(((observed - expected) ** 2 / expected).sum())
        assert chi_square < 22.5, f"position {position}: chi-square {chi_square} over 6 degrees of freedom (p < 0.001)"


def test_rejection_sampling_bookkeeping() -> None:
    one_hot = torch.eye(4)
    target = one_hot[torch.tensor([[1, 2, 3]])]
    draft = one_hot[torch.tensor([[1, 0]])]
    tokens, index, accepted = _sample_chain(target, draft, torch.tensor([[1, 0]]), torch.full((1, 3), 0.5))
    assert accepted.tolist() == [1]
    assert tokens[0, :2].tolist() == [1, 2]
    assert index[0].tolist() == [0, 1, -1]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("widths", [[1, 4, 2], [3, 3, 3]])
def test_attention_equals_a_loop_over_requests(causal: bool, widths: list[int], monkeypatch) -> None:
    from sglang.srt.layers.radix_attention import AttentionType

    from sglang_dspark.serving.cpu import attention

    monkeypatch.setattr(attention, "MAX_GATHERED_ROWS", 24)  # forces more than one group
    generator = torch.Generator().manual_seed(1)
    prefixes, heads, kv_heads, dim = [5, 0, 11], 4, 2, 8
    table = torch.randperm(3 * 20, generator=generator).view(3, 20)
    keys, values = (torch.randn(60, kv_heads, dim, generator=generator) for _ in range(2))
    queries = torch.randn(sum(widths), heads * dim, generator=generator)
    backend = attention.ReferenceAttention.__new__(attention.ReferenceAttention)
    backend.req_to_token_pool = SimpleNamespace(req_to_token=table)
    backend.token_to_kv_pool = SimpleNamespace(get_key_buffer=lambda _: keys, get_value_buffer=lambda _: values)
    backend._planned_for, backend._groups = None, []
    layer = SimpleNamespace(
        is_cross_attention=False,
        tp_q_head_num=heads,
        tp_k_head_num=kv_heads,
        qk_head_dim=dim,
        v_head_dim=dim,
        layer_id=0,
        scaling=0.3,
        sliding_window_size=None,
        attn_type=AttentionType.DECODER if causal else AttentionType.ENCODER_ONLY,
    )
    mode = SimpleNamespace(is_target_verify=lambda: True)
    layout = SimpleNamespace(verify_lens_cpu=None, verify_lens=torch.tensor(widths))
    forward = SimpleNamespace(
        forward_mode=mode,
        seq_lens=torch.tensor(prefixes),
        req_pool_indices=torch.tensor([2, 0, 1]),
        spec_info=SimpleNamespace(ragged_verify_layout=layout),
    )
    output = backend.forward_extend(queries, None, None, layer, forward, save_kv_cache=False)

    cursor = 0
    for row, prefix, width in zip([2, 0, 1], prefixes, widths, strict=True):
        slots = table[row, : prefix + width]
        for step in range(width):
            seen = slots[: prefix + step + 1] if causal else slots
            query = queries[cursor].view(kv_heads, heads // kv_heads, dim)
            scores = torch.einsum("hgd,shd->hgs", query, keys[seen]) * 0.3
            expected = torch.einsum("hgs,shd->hgd", scores.softmax(-1), values[seen]).reshape(-1)
            torch.testing.assert_close(output[cursor], expected, atol=1e-5, rtol=1e-5)
            cursor += 1


def test_offered_only_without_an_accelerator(monkeypatch) -> None:
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.setattr(cpu, "accelerator_present", lambda: False)
    assert cpu.activate() == cpu.PLATFORM_CLASS
    monkeypatch.setattr(cpu, "accelerator_present", lambda: True)
    assert cpu.activate() is None
    monkeypatch.setattr(cpu, "accelerator_present", lambda: False)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert cpu.activate() is None
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE")
    monkeypatch.setenv("SGLANG_PLUGINS", "")
    assert cpu.activate() is None


def test_rows_of_a_shared_tier_are_padded_to_the_largest_ranks_requests() -> None:
    """Not to more: SGLang's buffers hold as many requests as may run."""
    from sglang_dspark.serving.cpu.dp_attention import _Into

    for requests in range(1, 25):
        for rows in (requests, requests + 6, 7 * requests + 3):
            assert rows // _Into(requests) == requests and type(rows // _Into(requests)) is int
