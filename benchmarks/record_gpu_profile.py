"""Records what a decode step of a Qwen3-8B-shaped target with a DSpark draft costs on this GPU, as a profile.

    python benchmarks/record_gpu_profile.py --output profiles/qwen3-8b-<gpu>.json
    python benchmarks/record_gpu_profile.py --device cpu --small --output <file>      # shows that it runs; no profile

Random weights, paged attention, one CUDA graph per token tier, several context lengths. For every tier T the verify
(36 layers, head, packed rejection) is timed with few and with many requests, at several contexts: seconds = base(T) +
slope x context tokens of the batch, fitted by least squares; the draft (context injection, 5 layers, head, Markov
block, confidence) is timed by requests in the same way. The file states what it leaves out and how far the fit is
from the measurements.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton

sys.path.insert(0, str(Path(__file__).resolve().parent))
import qwen_step  # noqa: E402
from dspark_kernels.choose import seconds_per_call  # noqa: E402
from dspark_kernels.interpreter import interpreted  # noqa: E402
from dspark_kernels.markov import sample_markov_block  # noqa: E402
from dspark_kernels.markov_heads import MarkovHead  # noqa: E402
from dspark_kernels.rejection import verify  # noqa: E402
from dspark_kernels.rejection_reference import DraftLaw, Sampling  # noqa: E402
from dspark_kernels.survival import confidence_survival  # noqa: E402
from qwen_step import Batch, Model, ModelShape  # noqa: E402

LEFT_OUT = (
    "fused elementwise kernels (norm, rotary embedding, activation are separate torch kernels), tensor parallelism, "
    "the scheduler; attention is a Triton split-KV kernel, not FlashInfer or FlashAttention"
)


@dataclass(frozen=True)
class Sweep:
    """What is measured: batch sizes whose full blocks are the tiers, contexts per request, prefill chunks."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 96, 128)
    contexts: tuple[int, ...] = (512, 2048, 8192)
    chunks: tuple[int, ...] = (512, 2048, 8192)
    kv_slots: int = 1 << 19


SMALL_SWEEP = Sweep(batches=(1, 2), contexts=(8, 24), chunks=(8, 16), kv_slots=1 << 10)


@dataclass(frozen=True)
class Point:
    """One measurement: the tier or batch it belongs to, the context tokens of the whole batch, median seconds and
    spread."""

    size: int
    context_tokens: int
    seconds: float
    spread: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="profile to write")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="a toy model")
    parser.add_argument("--repeats", type=int, default=None, help="timed replays per point (default 20; 1 on a CPU)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA device: a profile is measured or it is nothing (--device cpu --small shows that it runs)",
            file=sys.stderr,
        )
        return 2
    if options.device == "cpu" and not options.small:
        print("an 8B-shaped model does not run in the interpreter: --device cpu needs --small", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    context = nullcontext() if device.type == "cuda" else interpreted(qwen_step)
    with context, torch.inference_mode():
        profile = Recorder(device, options.small, options.repeats).record()
    options.output.write_text(json.dumps(profile, indent=1) + "\n")
    print(f"written: {options.output}")
    return 0


class Recorder:
    """The model, its sweeps and what they found."""

    def __init__(self, device: torch.device, small: bool, repeats: int | None) -> None:
        self.device, self.small = device, small
        self.shape = qwen_step.SMALL if small else ModelShape()
        self.sweep = SMALL_SWEEP if small else Sweep()
        self.repeats = repeats or (20 if device.type == "cuda" else 1)
        torch.manual_seed(0)
        self.target = Model(self.shape, self.shape.layers, device)
        self.draft = Model(self.shape, self.shape.draft_layers, device)
        shape = self.shape
        self.fc = (0.02 * torch.randn(shape.width, shape.captured * shape.width, device=device)).bfloat16()
        w1, w2 = ((0.1 * torch.randn(shape.vocab, shape.rank, device=device)).bfloat16() for _ in range(2))
        self.head = MarkovHead("vanilla", w1, w2)
        self.confidence_weight = 0.01 * torch.randn(1, shape.width + shape.rank, device=device)

    def record(self) -> dict[str, Any]:
        """Measure everything; the profile as it is written."""
        drafts = self.draft_points()
        verifies, eager = self.verify_points()
        draft_base, draft_slope, draft_error = fit(drafts)
        verify_base, verify_slope, verify_error = fit(verifies)
        prefill_base, prefill_token = self.prefill()
        terms = {
            "context_token_s": verify_slope,
            "draft_context_token_s": draft_slope,
            "prefill_base_s": prefill_base,
            "prefill_token_s": prefill_token,
            "copy_s": self.copy(),
        }
        meta = self.meta(drafts + verifies, {"draft": draft_error, "verify": verify_error})
        return as_profile(draft_base, verify_base, eager, max(self.sweep.batches), terms, meta)

    def time(self, call: Callable[[], object], graph: bool = True) -> tuple[float, float]:
        """Median seconds and relative spread (max - min) / median."""
        taken = seconds_per_call(call, self.device, repeats=self.repeats, graph=graph)
        median = statistics.median(taken)
        return median, (max(taken) - min(taken)) / median

    def prepare(self, model: Model, slots: int) -> None:
        model.caches = []
        free = torch.cuda.mem_get_info(self.device)[0] * 0.5 if self.device.type == "cuda" else 1e8
        model.make_caches(slots, free)

    def draft_points(self) -> list[Point]:
        """The draft by requests and context."""
        points, gamma = [], self.shape.gamma
        for requests in self.sweep.batches:
            for context in self.contexts(requests):
                batch = Batch.make([gamma] * requests, context, self.device)
                self.prepare(self.draft, batch.kv_indices.numel())
                seconds, spread = self.time(self.draft_call(requests, batch))
                points.append(self.note("draft", requests, requests * context, seconds, spread))
        return points

    def draft_call(self, requests: int, batch: Batch) -> Callable[[], object]:
        shape, device = self.shape, self.device
        tokens = torch.randint(0, shape.vocab, (requests * shape.gamma,), device=device)
        anchor = torch.randint(0, shape.vocab, (requests,), device=device)
        committed = torch.randn(requests * (shape.gamma + 1), shape.captured * shape.width, device=device).bfloat16()
        ones, temperatures = torch.ones(requests, device=device), torch.ones(shape.gamma, device=device)
        counters = dict(seed=1, request=torch.arange(requests, device=device), step=torch.tensor([1], device=device))
        key_value = slice(shape.heads * shape.head_dim, None)

        def call() -> None:
            features = F.rms_norm(F.linear(committed, self.fc), (shape.width,), self.draft.norm)
            for layer in self.draft.layers:
                F.linear(features, layer.qkv[key_value])
            hidden = self.draft.forward(tokens, batch, causal=False)
            base = F.linear(hidden, self.target.embedding).view(requests, shape.gamma, shape.vocab)
            block = sample_markov_block(self.head, base, anchor, ones, **counters, keep="logits")
            per_position = hidden.view(requests, shape.gamma, shape.width)
            confidence_survival(
                per_position, anchor, block.tokens, self.confidence_weight, None, temperatures, self.head.w1
            )

        return call

    def verify_points(self) -> tuple[list[Point], list[tuple[int, float]]]:
        """The verify by tier, requests and context; and eagerly, at the largest tiers."""
        points, eager = [], []
        width = self.shape.gamma + 1
        for full in self.sweep.batches:
            tier = full * width
            # The same tokens spread over few long blocks and over many short ones.
            for requests in sorted({full, min(2 * full, tier)}):
                lens = [tier // requests + (index < tier % requests) for index in range(requests)]
                for context in self.contexts(requests):
                    batch = Batch.make(lens, context, self.device)
                    self.prepare(self.target, batch.kv_indices.numel())
                    call = self.verify_call(lens, batch)
                    seconds, spread = self.time(call)
                    points.append(self.note("verify", tier, requests * context, seconds, spread))
            if full in self.sweep.batches[-2:]:
                eager.append((tier, self.time(call, graph=False)[0]))
        return points, eager

    def verify_call(self, lens: list[int], batch: Batch) -> Callable[[], object]:
        shape, device, requests = self.shape, self.device, len(lens)
        tokens = torch.randint(0, shape.vocab, (sum(lens),), device=device)
        lengths = torch.tensor([length - 1 for length in lens], dtype=torch.int32, device=device)
        drafted = torch.randint(0, shape.vocab, (requests, shape.gamma), device=device)
        # Draft logits are shared by all requests: only one row per request is read.
        logits = torch.randn(1, shape.gamma, shape.vocab, device=device).bfloat16().expand(requests, -1, -1)
        ones = torch.ones(requests, device=device)
        law = DraftLaw(logits, torch.full((requests, shape.gamma), 12.0, device=device), ones)
        counters = dict(seed=1, request=torch.arange(requests, device=device), step=torch.tensor([1], device=device))

        def call() -> None:
            hidden = self.target.forward(tokens, batch, causal=True)
            packed = F.linear(hidden, self.target.embedding)
            verify(packed, batch.qo_indptr[:-1], lengths, drafted, Sampling(ones), law, **counters)

        return call

    def contexts(self, requests: int) -> list[int]:
        """Contexts that fit the KV slots of the sweep at this batch size; the shortest always."""
        fitting = [context for context in self.sweep.contexts if requests * context <= self.sweep.kv_slots]
        return fitting or list(self.sweep.contexts[:1])

    def prefill(self) -> tuple[float, float]:
        """Base and per-token seconds of a prefill chunk without cached context, eager, by least squares."""
        taken = []
        shape = self.shape
        for chunk in self.sweep.chunks:
            x = torch.randn(chunk, shape.width, device=self.device).bfloat16()
            taken.append(self.time(lambda x=x: self.prefill_forward(x), graph=False)[0])
        slope, base = np.polyfit(self.sweep.chunks, taken, 1)
        return max(float(base), 0.0), max(float(slope), 0.0)

    def prefill_forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = self.shape
        for layer in self.target.layers:
            mixed = F.linear(F.rms_norm(x, (shape.width,), layer.norms[0]), layer.qkv).view(
                1, len(x), -1, shape.head_dim
            )
            q, k, v = (
                each.transpose(1, 2) for each in mixed.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=2)
            )
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(seen.transpose(1, 2).reshape(len(x), -1), layer.o)
            gate, up = F.linear(F.rms_norm(x, (shape.width,), layer.norms[1]), layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return x

    def copy(self) -> float:
        """Seconds until the verify lengths of a batch are on the host: what a synchronous step waits for."""
        lengths = torch.ones(max(self.sweep.batches) + 1, dtype=torch.int32, device=self.device)
        return self.time(lambda: lengths.cpu(), graph=False)[0]

    def note(self, what: str, size: int, context_tokens: int, seconds: float, spread: float) -> Point:
        print(f"{what} {size:5d} context {context_tokens:8d}: {seconds * 1e3:9.3f} ms, spread {spread:.1%}", flush=True)
        return Point(size, context_tokens, seconds, spread)

    def meta(self, points: list[Point], errors: dict[str, float]) -> dict[str, Any]:
        """Provenance, as `sglang_dspark.cost` prints it."""
        measured = self.device.type == "cuda"
        hardware = torch.cuda.get_device_name(self.device) if measured else "Triton interpreter (no measurement)"
        return {
            "hardware": hardware,
            "model": f"Qwen3-8B shape with a {self.shape.draft_layers}-layer DSpark draft, random weights"
            if not self.small
            else "toy",
            "software": f"torch {torch.__version__}, triton {triton.__version__}, CUDA {torch.version.cuda}",
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "how": f"benchmarks/record_gpu_profile.py, CUDA graph per tier, median of {self.repeats} replays",
            "sweep": "off-diagonal",
            "leaves_out": LEFT_OUT,
            "context_tokens_per_request": list(self.sweep.contexts),
            "largest_spread": max(point.spread for point in points),
            "largest_fit_error": errors,
        }


def fit(points: list[Point]) -> tuple[dict[int, float], float, float]:
    """Least squares of seconds = base(size) + slope x context tokens. Returns base by size, slope, and the largest
    relative error."""
    sizes = sorted({point.size for point in points})
    matrix = np.zeros((len(points), len(sizes) + 1))
    for row, point in enumerate(points):
        matrix[row, sizes.index(point.size)], matrix[row, -1] = 1.0, point.context_tokens
    seconds = np.array([point.seconds for point in points])
    # Relative errors count: short steps matter as much as long ones.
    solution, *_ = np.linalg.lstsq(matrix / seconds[:, None], np.ones(len(points)), rcond=None)
    if solution[-1] < 0:
        # Noise: the context costs nothing that could be seen.
        solution = np.array([*(statistics.median(p.seconds for p in points if p.size == size) for size in sizes), 0.0])
    error = float(np.max(np.abs(matrix @ solution - seconds) / seconds))
    return dict(zip(sizes, solution[:-1].tolist(), strict=True)), float(solution[-1]), error


def as_profile(
    draft: dict[int, float],
    verify_base: dict[int, float],
    eager: list[tuple[int, float]],
    captured_requests: int,
    terms: dict[str, float],
    meta: dict[str, Any],
) -> dict[str, Any]:
    """SGLang's additive table (read by its own loader) with our `tiered` part beside it."""
    tiers, bias = list(verify_base), min(verify_base.values())
    return {
        "bias_seconds": bias,
        "bs_probes": list(draft),
        "alpha_seconds": list(draft.values()),
        "m_probes": tiers,
        "theta_seconds": [seconds - bias for seconds in verify_base.values()],
        "meta": meta,
        "tiered": {
            "draft": {"num_requests": list(draft), "seconds": list(draft.values())},
            "verify": {"num_tokens": tiers, "seconds": list(verify_base.values())},
            "captured_tokens": tiers,
            "captured_requests": captured_requests,
            "eager": {"num_tokens": [size for size, _ in eager], "seconds": [seconds for _, seconds in eager]},
            "terms": terms,
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
