"""A Qwen3-8B-shaped target and DSpark draft with random weights: the forwards of one decode step, over a paged KV
cache.

Plain torch plus one Triton attention kernel, so that it runs wherever torch does. Weights do not matter for time.
What it leaves out is stated where the profile is written: fused elementwise kernels, tensor parallelism, the
scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the target; the draft has the same layers, `draft_layers` of them, and reads `captured` target
    layers."""

    layers: int = 36
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    inner: int = 12_288
    vocab: int = 151_936
    draft_layers: int = 5
    captured: int = 5
    rank: int = 256
    gamma: int = 7


SMALL = ModelShape(
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    inner=96,
    vocab=320,
    draft_layers=1,
    captured=2,
    rank=16,
    gamma=2,
)


@triton.jit
def _attention_kernel(
    Q,
    K,
    V,
    QO,
    KV,
    INDEX,
    OUT,
    LSE,
    scale,
    num_tokens,
    heads,
    kv_heads,
    splits,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    # One split of the cache for one request and one K/V head; its queries of all GROUP heads share a tile.
    request, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    q_start, kv_start = tl.load(QO + request), tl.load(KV + request)
    q_len, kv_len = tl.load(QO + request + 1) - q_start, tl.load(KV + request + 1) - kv_start
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    token = row // GROUP
    inside = token < q_len
    address = ((q_start + token).to(tl.int64) * heads + head * GROUP + row % GROUP) * DIM
    query = tl.load(Q + address[:, None] + dim[None, :], inside[:, None], 0.0)
    per_split = tl.cdiv(tl.cdiv(kv_len, splits), BLOCK) * BLOCK
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, kv_len), BLOCK):
        at = start + tl.arange(0, BLOCK)
        slot = tl.load(INDEX + kv_start + at, at < kv_len, 0).to(tl.int64)
        cache = (slot * kv_heads + head) * DIM
        key = tl.load(K + cache[:, None] + dim[None, :], (at < kv_len)[:, None], 0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        seen = (at < kv_len)[None, :]
        if CAUSAL:
            seen = seen & (at[None, :] <= (kv_len - q_len + token)[:, None])
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(largest, tl.max(score, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp(score - shift[:, None])
        keep = tl.exp(largest - shift)
        value = tl.load(V + cache[:, None] + dim[None, :], (at < kv_len)[:, None], 0.0)
        out = out * keep[:, None] + tl.dot(weight.to(value.dtype), value)
        total = total * keep + tl.sum(weight, 1)
        largest = higher
    partial = (split * num_tokens + q_start + token).to(tl.int64) * heads + head * GROUP + row % GROUP
    tl.store(OUT + partial[:, None] * DIM + dim[None, :], out / tl.maximum(total, 1e-30)[:, None], inside[:, None])
    tl.store(LSE + partial, tl.where(total > 0.0, largest + tl.log(tl.maximum(total, 1e-30)), -float("inf")), inside)


@triton.jit
def _merge_kernel(PARTIAL, LSE, OUT, rows, splits, DIM: tl.constexpr, BLOCK: tl.constexpr):
    row, split, dim = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK), tl.arange(0, DIM)
    lse = tl.load(LSE + split * rows + row, split < splits, -float("inf"))
    weight = tl.exp(lse - tl.max(lse, 0))
    mask = (split < splits)[:, None]
    partial = tl.load(PARTIAL + (split * rows + row)[:, None] * DIM + dim[None, :], mask, 0.0)
    merged = tl.sum(partial * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(OUT + row * DIM + dim, merged.to(OUT.dtype.element_ty))


@dataclass
class Batch:
    """A ragged batch: qo_indptr and kv_indptr [R + 1] int32, kv_indices [N] int32, positions [T] int64."""

    qo_indptr: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    positions: torch.Tensor
    longest: int

    @classmethod
    def make(cls, q_lens: list[int], context: int, device: torch.device) -> Batch:
        """Requests with `context` cached tokens each, then their q_lens new ones, in shuffled slots."""
        queries, cached = torch.tensor(q_lens), torch.tensor(q_lens) + context
        zero = torch.zeros(1, dtype=torch.int64)
        qo, kv = (torch.cat([zero, each.cumsum(0)]).to(torch.int32) for each in (queries, cached))
        slots = torch.randperm(int(kv[-1])).to(torch.int32)
        positions = torch.cat([context + torch.arange(length) for length in q_lens])
        return cls(qo.to(device), kv.to(device), slots.to(device), positions.to(device), max(q_lens))


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: Batch, causal: bool) -> torch.Tensor:
    """Paged attention. query: [T, heads, D]; keys, values: [slots, kv_heads, D]. Returns [T, heads, D]."""
    num_tokens, heads, dim = query.shape
    kv_heads, requests = keys.shape[1], batch.qo_indptr.shape[0] - 1
    group = heads // kv_heads
    splits = max(1, min(32, 512 // (requests * kv_heads)))
    partial = torch.empty(splits, num_tokens, heads, dim, dtype=torch.float32, device=query.device)
    lse = torch.empty(splits, num_tokens, heads, dtype=torch.float32, device=query.device)
    rows = max(16, triton.next_power_of_2(batch.longest * group))
    _attention_kernel[(requests, kv_heads, splits)](
        query,
        keys,
        values,
        batch.qo_indptr,
        batch.kv_indptr,
        batch.kv_indices,
        partial,
        lse,
        dim**-0.5,
        num_tokens,
        heads,
        kv_heads,
        splits,
        GROUP=group,
        DIM=dim,
        ROWS=rows,
        BLOCK=64,
        CAUSAL=causal,
        num_warps=4,
    )
    out = torch.empty_like(query)
    _merge_kernel[(num_tokens * heads,)](
        partial, lse, out, num_tokens * heads, splits, DIM=dim, BLOCK=triton.next_power_of_2(splits), num_warps=1
    )
    return out


class Layer:
    """One transformer layer of Qwen3."""

    def __init__(self, shape: ModelShape, device: torch.device) -> None:
        def weight(*size: int) -> torch.Tensor:
            return (0.02 * torch.randn(*size, device=device)).bfloat16()

        self.shape = shape
        self.norms = [torch.ones(shape.width, device=device).bfloat16() for _ in range(2)]
        self.head_norms = [torch.ones(shape.head_dim, device=device).bfloat16() for _ in range(2)]
        self.qkv = weight((shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.width)
        self.o = weight(shape.width, shape.heads * shape.head_dim)
        self.gate_up, self.down = weight(2 * shape.inner, shape.width), weight(shape.width, shape.inner)

    def __call__(
        self, x: torch.Tensor, cache: list[torch.Tensor], batch: Batch, rope: torch.Tensor, causal: bool
    ) -> torch.Tensor:
        shape = self.shape
        mixed = F.linear(F.rms_norm(x, (shape.width,), self.norms[0]), self.qkv)
        q, k, v = mixed.view(len(x), -1, shape.head_dim).split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        q, k = (
            rotate(F.rms_norm(each, (shape.head_dim,), norm), rope)
            for each, norm in zip((q, k), self.head_norms, strict=True)
        )
        # The new tokens' slots are the last of each request; which ones they are does not change the time.
        cache[0][: len(x)], cache[1][: len(x)] = k, v
        x = x + F.linear(attend(q.contiguous(), *cache, batch, causal).flatten(1), self.o)
        gate, up = F.linear(F.rms_norm(x, (shape.width,), self.norms[1]), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


def rotate(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [T, heads, D] by cos and sin [2, T, 1, D / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * rope[0] - second * rope[1], second * rope[0] + first * rope[1]], dim=-1)


class Model:
    """`layers` layers, embedding and head. Layers take turns on the K/V caches that fit in memory."""

    def __init__(self, shape: ModelShape, layers: int, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self.layers = [Layer(shape, device) for _ in range(layers)]
        self.embedding = (0.02 * torch.randn(shape.vocab, shape.width, device=device)).bfloat16()
        self.norm = torch.ones(shape.width, device=device).bfloat16()
        self.caches: list[list[torch.Tensor]] = []

    def make_caches(self, slots: int, budget_bytes: float) -> None:
        """Allocate one cache per layer, or as many as the budget allows."""
        self.caches = []
        size = 2 * slots * self.shape.kv_heads * self.shape.head_dim * 2
        for _ in range(max(1, min(len(self.layers), int(budget_bytes // size)))):
            pair = torch.randn(2, slots, self.shape.kv_heads, self.shape.head_dim, device=self.device).bfloat16()
            self.caches.append([pair[0], pair[1]])

    def forward(self, tokens: torch.Tensor, batch: Batch, causal: bool) -> torch.Tensor:
        """Final hidden states [T, width] of tokens [T]."""
        frequency = 1e6 ** (-torch.arange(0, self.shape.head_dim, 2, device=self.device) / self.shape.head_dim)
        angle = (batch.positions[:, None] * frequency)[:, None, :]
        rope = torch.stack([angle.cos(), angle.sin()]).bfloat16()
        x = F.embedding(tokens, self.embedding)
        for index, layer in enumerate(self.layers):
            x = layer(x, self.caches[index % len(self.caches)], batch, rope, causal)
        return F.rms_norm(x, (self.shape.width,), self.norm)
