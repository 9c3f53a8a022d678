"""Torch twins of the Triton kernels that SGLang 0.5.23 would launch in DSPARK's hot path on a CPU tensor.

`install` puts them where SGLang looks the kernels up. It runs in worker processes of the reference platform only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def packed_cache_locs(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    batch_size: int,
    draft_token_num: int,
    device: Any,
) -> Tensor:
    """KV slots of columns [start, end) of every request's pool row, packed request after request.

    Shapes: indices and offsets [R], req_to_token [pool, columns]; returns [R * draft_token_num] int64. Like the
    Triton kernel, the output is sized for the uniform width; a ragged batch fills its front and zeroes the rest.
    """
    start, end = start_offset.to(torch.int64), end_offset.to(torch.int64)
    rows = torch.repeat_interleave(torch.arange(batch_size), end - start)
    first = torch.cumsum(end - start, 0) - (end - start)
    columns = start[rows] + torch.arange(rows.numel()) - first[rows]
    locations = torch.zeros(batch_size * draft_token_num, dtype=torch.int64, device=device)
    locations[: rows.numel()] = req_to_token[req_pool_indices.to(torch.int64)[rows], columns].to(torch.int64)
    return locations


def assign_req_to_token_pool(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    batch_size: int,
) -> None:
    """Write packed KV slots [tokens] into columns [start, end) of every request's pool row, in place."""
    start, lengths = start_offset.to(torch.int64), (end_offset - start_offset).to(torch.int64)
    rows = torch.repeat_interleave(torch.arange(batch_size), lengths)
    first = torch.cumsum(lengths, 0) - lengths
    columns = start[rows] + torch.arange(rows.numel()) - first[rows]
    slots = out_cache_loc[: rows.numel()].to(req_to_token.dtype)
    req_to_token[req_pool_indices.to(torch.int64)[rows], columns] = slots


def chain_speculative_sampling(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float,
    threshold_acc: float,
    deterministic: bool,
    *,
    block_verification: bool = False,
) -> None:
    """Rejection sampling of a drafted chain (Leviathan et al. 2023); SGLang's argument names and outputs.

    candidates [R, W] (anchor first), target_probs [R, W, V], draft_probs [R, >= W - 1, V], coins [R, >= W - 1] and
    [R]. Fills predicts, accept_index [R, W] and accept_token_num [R] in place. Draft token j is kept while
    coin * q < p; the token after the kept prefix comes from max(p - q, 0), or from p when all were kept.
    """
    if block_verification:
        raise NotImplementedError("block verification has no reference on the CPU platform")
    gamma = candidates.shape[1] - 1
    rows = torch.arange(candidates.shape[0])
    drafted = candidates[:, 1:].to(torch.int64)
    target = target_probs[:, :gamma].gather(2, drafted[..., None])[..., 0]
    draft = draft_probs[:, :gamma].gather(2, drafted[..., None])[..., 0]
    kept = (draft > 0) & (draft <= 1) & (uniform_samples[:, :gamma] * draft < target)
    accepted = torch.cumprod(kept.to(torch.int64), dim=1).sum(dim=1)

    weights = target_probs[rows, accepted].clone()
    rejected = accepted < gamma
    residual = draft_probs[rows[rejected], accepted[rejected]]
    residual = torch.where((residual >= 0) & (residual <= 1), residual, torch.zeros_like(residual))
    weights[rejected] = (weights[rejected] - residual).clamp_(min=0)
    cumulative = torch.cumsum(weights.to(torch.float64), dim=1)
    threshold = uniform_samples_for_final_sampling.to(torch.float64) * cumulative[:, -1]
    last = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp_(max=weights.shape[1] - 1)

    steps = torch.arange(gamma + 1)
    chosen = torch.where(steps < accepted[:, None], torch.nn.functional.pad(drafted, (0, 1)), last[:, None])
    within = steps <= accepted[:, None]
    predicts[retrive_index[within].to(torch.int64)] = chosen[within].to(predicts.dtype)
    accept_index[within] = retrive_index[within].to(accept_index.dtype)
    accept_token_num.copy_(accepted)


def philox(key: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 on broadcastable int64 counters; bit-equal to SGLang's torch version, ten times faster.

    NumPy has an unsigned 64-bit product, where torch has to split every multiplication into halves.
    """
    low = np.uint64(0xFFFFFFFF)
    words = [counter.numpy().astype(np.uint64) for counter in (c0, c1, c2, c3)]
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        a, b = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [
            (b >> np.uint64(32)) ^ words[1] ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ words[3] ^ np.uint64(k1),
            a & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(torch.from_numpy(word.astype(np.int64)) for word in words)


def install() -> None:
    """Point SGLang at the references; idempotent."""
    from sglang.kernels.ops.speculative import reject_sampling
    from sglang.kernels.ops.speculative.dspark import dspark_accept, markov_sample
    from sglang.srt.kv_canary.runner.future_tensor import FutureTensors
    from sglang.srt.layers.attention import attention_registry
    from sglang.srt.mem_cache import allocation

    from sglang_dspark.serving.cpu import dp_attention

    markov_sample._philox = philox
    markov_sample.MarkovSampleStep.torch = _only_needed_noise(markov_sample.MarkovSampleStep.torch)
    reject_sampling.chain_speculative_sampling_triton = chain_speculative_sampling
    dspark_accept.chain_speculative_sampling_triton = chain_speculative_sampling
    allocation.assign_req_to_token_pool_func = assign_req_to_token_pool
    attention_registry.ATTENTION_BACKENDS["torch_native"] = _reference_attention
    torch.Tensor.record_stream = _without_cpu_streams(torch.Tensor.record_stream)
    # SGLang's debug dump (`dspark record` drains it) copies on a stream of its own.
    torch.cpu.Stream = HostStream
    FutureTensors.device_to_host = classmethod(kept_on_host)
    dp_attention.install()


class HostStream(torch.cpu.Stream):
    """torch's stand-in for a stream, made with the arguments that device streams take."""

    def __init__(self, device: Any = None, priority: int = -1) -> None:
        super().__init__(priority)


def kept_on_host(cls: type, xs_device: Tensor | dict[str, Any], *, d2h_stream: Any) -> Any:
    """`FutureTensors.device_to_host` for tensors that are on the host already: a copy that is ready at once."""
    from sglang.srt.kv_canary.runner.future_tensor import _DUMMY_DICT_KEY

    if not isinstance(xs_device, dict):
        xs_device = {_DUMMY_DICT_KEY: xs_device}
    copies = {key: x.detach().clone() if isinstance(x, Tensor) else x for key, x in xs_device.items()}
    return cls(_data=copies, _event=torch.cpu.Event())


def _only_needed_noise(markov_step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """SGLang's Markov step, told when no row samples: on a CPU looking at the temperatures is free."""

    def wrapped(*, temperatures: Tensor, has_sampled_rows: bool | None = None, **arguments: Any) -> Tensor:
        if has_sampled_rows is None:
            has_sampled_rows = bool((temperatures != 0).any())
        return markov_step(temperatures=temperatures, has_sampled_rows=has_sampled_rows, **arguments)

    return wrapped


def _reference_attention(model_runner: Any) -> Any:
    from sglang_dspark.serving.cpu.attention import ReferenceAttention

    return ReferenceAttention(model_runner)


def _without_cpu_streams(record_stream: Callable[[Tensor, Any], None]) -> Callable[[Tensor, Any], None]:
    """`Tensor.record_stream` that is a no-op on CPU tensors, which have no allocator stream to protect."""
    if getattr(record_stream, "_dspark_cpu", False):
        return record_stream

    def wrapped(tensor: Tensor, stream: Any) -> None:
        if tensor.device.type != "cpu":
            record_stream(tensor, stream)

    wrapped._dspark_cpu = True  # type: ignore[attr-defined]
    return wrapped
