"""Times the kernels beside SGLang's sequences, against what the device can do at best.

    python benchmarks/kernels.py --out benchmarks/results/kernels-NAME.json    # a CUDA device; Qwen3 shapes
    python benchmarks/kernels.py --device cpu --small    # Triton's interpreter: it runs, and times mean nothing

For every operation: median and spread of a call over repeats of CUDA graphs of ten calls, the bytes that must move and
the operations that must be done at least, the time they take at the copy and matrix-product rates measured in the same
run (`least`), and the share of it that was reached. SGLang's sequence is `upstream_sequence.py`: its own kernels, in
the same run, where it is installed or `--sglang` names a folder of its kernel files. "As served" is our rejection with
what runs in front of it in the engine: SGLang's scatter, and the normaliser that the draft had computed once already.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
import triton

sys.path.insert(0, str(Path(__file__).resolve().parent))
import sglang_files  # noqa: E402
from dspark_kernels.admission import admit  # noqa: E402
from dspark_kernels.choose import CALLS, seconds_per_call  # noqa: E402
from dspark_kernels.interpreter import interpreted  # noqa: E402
from dspark_kernels.markov import sample_markov_block  # noqa: E402
from dspark_kernels.markov_bounds import markov_bounds  # noqa: E402
from dspark_kernels.markov_heads import MarkovHead  # noqa: E402
from dspark_kernels.rejection import verify  # noqa: E402
from dspark_kernels.rejection_reference import DraftLaw, Sampling  # noqa: E402
from dspark_kernels.rejection_statistics import draft_normaliser  # noqa: E402
from dspark_kernels.survival import confidence_survival, survival_units  # noqa: E402
from upstream_sequence import UpstreamSequence  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """Qwen3-8B: vocabulary, Markov rank, draft block, hidden size."""

    vocab: int = 151_936
    rank: int = 256
    gamma: int = 7
    width: int = 4096
    requests: tuple[int, ...] = (1, 8, 64, 256)


SMALL = Shape(vocab=600, rank=32, gamma=2, width=64, requests=(1, 3))


@dataclass(frozen=True)
class Work:
    """One operation to time: bytes and operations that it needs at least."""

    name: str
    call: Callable[[], object]
    num_bytes: float
    operations: float = 0.0


@dataclass(frozen=True)
class Row:
    """A measurement. Seconds; `least_s` is the time that the needed bytes and operations take at the measured
    ceilings."""

    name: str
    requests: int
    median_s: float
    fastest_s: float
    slowest_s: float
    num_bytes: float
    operations: float
    least_s: float

    @property
    def share(self) -> float:
        """What part of the ceiling was reached."""
        return self.least_s / self.median_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    parser.add_argument("--repeats", type=int, default=None, help="timed calls per operation (default 50; 1 on a CPU)")
    parser.add_argument(
        "--peaked", type=float, default=6.0, help="spread of the draft's base logits (standard deviation)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--sglang", help="folder of SGLang's kernel files, see gpu_wheels.py")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA device: nothing to time; --device cpu --small runs everything in Triton's interpreter",
            file=sys.stderr,
        )
        return 2
    if options.device == "cpu" and not options.small:
        print("the interpreter takes hours at Qwen3 shapes: --device cpu needs --small", file=sys.stderr)
        return 2
    if options.out is not None and options.device == "cpu":
        print("times of the interpreter are no results: --out needs a CUDA device", file=sys.stderr)
        return 2
    if options.repeats is not None and options.repeats < 1:
        print(f"--repeats {options.repeats} is refused, expected at least 1", file=sys.stderr)
        return 2
    run(options)
    return 0


def run(options: argparse.Namespace) -> None:
    """Measure everything and print it."""
    device, shape = torch.device(options.device), SMALL if options.small else Shape()
    repeats = options.repeats or (50 if device.type == "cuda" else 1)
    where = circumstances(device)
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    if device.type != "cuda":
        print("INTERPRETER: these times say nothing about speed; the run shows that every kernel and the report work.")
    files = sglang_files.load(options.sglang)
    if files is None:
        print("SGLang's sequence is left out: neither sglang nor --sglang is there")
    sglang = None if files is None else UpstreamSequence(files)
    with on(device, *([] if files is None else [files.reject_sampling])):
        copy_rate, product_rate = ceilings(device, options.small)
        print(f"ceilings: copy {copy_rate / 1e9:.1f} GB/s, bfloat16 matrix product {product_rate / 1e12:.2f} Tflop/s")
        rows = []
        for requests in shape.requests:
            torch.manual_seed(requests)
            for work in works(shape, requests, device, options.peaked, sglang):
                taken = seconds_per_call(work.call, device, repeats=repeats, calls=CALLS)
                least = max(work.num_bytes / copy_rate, work.operations / product_rate)
                row = Row(
                    work.name,
                    requests,
                    statistics.median(taken),
                    min(taken),
                    max(taken),
                    work.num_bytes,
                    work.operations,
                    least,
                )
                rows.append(row)
                print_row(row, header=len(rows) == 1, measured=device.type == "cuda")
    print_goals(rows, measured=device.type == "cuda")
    if options.out is not None:
        save(options.out, rows, where, shape, copy_rate, product_rate)


@contextlib.contextmanager
def on(device: torch.device, *modules: ModuleType) -> Iterator[None]:
    """CUDA as it is; a CPU through the interpreter, `modules` included."""
    if device.type == "cuda":
        yield
    else:
        with interpreted(*modules):
            yield


def circumstances(device: torch.device) -> dict[str, str]:
    """What a figure needs to be worth anything."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def ceilings(device: torch.device, small: bool) -> tuple[float, float]:
    """Bytes a second of a large copy, and operations a second of a large bfloat16 product, measured here."""
    numbers, side = (1 << 16, 64) if small else (1 << 29, 8192)
    source = torch.empty(numbers, dtype=torch.bfloat16, device=device).fill_(1)
    target = torch.empty_like(source)
    copying = min(seconds_per_call(lambda: target.copy_(source), device, repeats=10))
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    multiplying = min(seconds_per_call(lambda: left @ right, device, repeats=10))
    return 2 * source.nbytes / copying, 2.0 * side**3 / multiplying


def works(
    shape: Shape, requests: int, device: torch.device, peaked: float, sglang: UpstreamSequence | None
) -> Iterator[Work]:
    """Every operation at one batch size."""
    yield from markov_works(shape, requests, device, peaked, sglang)
    yield from rejection_works(shape, requests, device, sglang)
    yield from scheduling_works(shape, requests, device)


def markov_works(
    shape: Shape, requests: int, device: torch.device, peaked: float, sglang: UpstreamSequence | None
) -> Iterator[Work]:
    """The Markov block: greedy without logits, sampled with them. Weights are random: a trained head screens
    differently."""
    vocab, rank, gamma = shape.vocab, shape.rank, shape.gamma
    w1, w2 = (torch.randn(vocab, rank, device=device).bfloat16() * 0.1 for _ in range(2))
    head = MarkovHead("vanilla", w1, w2)
    bounds = markov_bounds(head)
    base = (peaked * torch.randn(requests, gamma, vocab, device=device)).bfloat16()
    anchor = torch.randint(0, vocab, (requests,), device=device)
    counters = dict(seed=1, request=torch.arange(requests, device=device), step=torch.tensor([3], device=device))
    read, weights = base.nbytes, w2.nbytes
    product = 2.0 * requests * gamma * vocab * rank
    for kind, temperature, keep in (("greedy", 0.0, False), ("sampled", 1.0, True)):
        temperatures = torch.full((requests,), temperature, device=device)
        kept = "logits" if keep else "nothing"
        needed = read + (weights + base.nbytes if keep else 0)
        arguments = (head, base, anchor, temperatures)
        ours = dict(counters, keep=kept)
        if sglang is not None:
            yield Work(
                f"Markov block, {kind}: SGLang's sequence",
                lambda t=temperatures, k=keep: sglang.markov_block(w1, w2, base, anchor, t, counters["step"], keep=k),
                needed,
                product if keep else 0.0,
            )
        yield Work(
            f"Markov block, {kind}: one pass a step",
            lambda a=arguments, o=ours: sample_markov_block(*a, **o),
            needed,
            product if keep else 0.0,
        )
        yield Work(
            f"Markov block, {kind}: screened",
            lambda a=arguments, o=ours: sample_markov_block(*a, **o, bounds=bounds),
            needed,
            product if keep else 0.0,
        )
    tiles = sample_markov_block(*arguments, **counters, keep="nothing", bounds=bounds, count_tiles=True).tiles_read
    total = bounds.norm.shape[0] * triton.cdiv(requests, 16)
    print(f"R={requests}: screening read {tiles.tolist()} of {total} tiles at the {gamma} sampled steps")


def rejection_works(
    shape: Shape, requests: int, device: torch.device, sglang: UpstreamSequence | None
) -> Iterator[Work]:
    """Packed rejection when every request verifies about half its block."""
    vocab, gamma = shape.vocab, shape.gamma
    lengths = (torch.arange(requests, device=device) % (gamma + 1)).to(torch.int32)
    start = torch.cumsum(lengths + 1, 0) - (lengths + 1)
    packed = (3 * torch.randn(int((lengths + 1).sum()), vocab, device=device)).bfloat16()
    step_logits = (3 * torch.randn(requests, gamma, vocab, device=device)).bfloat16()
    draft = torch.randint(0, vocab, (requests, gamma), device=device)
    ones = torch.ones(requests, device=device)
    law = DraftLaw(step_logits, torch.logsumexp(step_logits.float(), dim=-1), ones)
    counters = dict(seed=1, request=torch.arange(requests, device=device), step=torch.tensor([3], device=device))
    needed = packed.nbytes + requests * vocab * 4
    filters = dict(top_k=torch.full((requests,), 50, dtype=torch.int32, device=device), top_p=0.95 * ones)
    if sglang is not None:
        yield Work(
            "Rejection: SGLang's sequence", lambda: sglang.accept(packed, lengths, draft, ones, step_logits), needed
        )
        rows = torch.arange(requests, device=device) * (gamma + 1)

        def served(sampling: Sampling) -> object:
            strided = sglang.scatter(packed, lengths, gamma)
            drawn = DraftLaw(step_logits, draft_normaliser(step_logits, ones, lengths), ones)
            return verify(strided, rows, lengths, draft, sampling, drawn, **counters)

        scattered = needed + 2 * packed.nbytes + step_logits.nbytes
        for kind, sampling in (("", Sampling(ones)), (", top-k 50, top-p 0.95", Sampling(ones, **filters))):
            yield Work(f"Rejection: as served{kind}", lambda s=sampling: served(s), scattered)
        yield Work("SGLang's scatter alone", lambda: sglang.scatter(packed, lengths, gamma), 2 * packed.nbytes)
    yield Work("The draft's normaliser alone", lambda: draft_normaliser(step_logits, ones, lengths), step_logits.nbytes)
    yield Work(
        "Rejection: packed", lambda: verify(packed, start, lengths, draft, Sampling(ones), law, **counters), needed
    )
    yield Work(
        "Rejection: packed, top-k 50, top-p 0.95",
        lambda: verify(packed, start, lengths, draft, Sampling(ones, **filters), law, **counters),
        needed,
    )


def scheduling_works(shape: Shape, requests: int, device: torch.device) -> Iterator[Work]:
    """Confidence with survival, and the three ways to admit."""
    gamma, width, rank = shape.gamma, shape.width, shape.rank
    hidden = torch.randn(requests, gamma, width, device=device).bfloat16()
    w1 = torch.randn(shape.vocab, rank, device=device).bfloat16()
    weight, temperatures = 0.01 * torch.randn(1, width + rank, device=device), torch.ones(gamma, device=device)
    anchor = torch.randint(0, shape.vocab, (requests,), device=device)
    draft = torch.randint(0, shape.vocab, (requests, gamma), device=device)
    yield Work(
        "Confidence and survival",
        lambda: confidence_survival(hidden, anchor, draft, weight, None, temperatures, w1),
        hidden.nbytes + requests * gamma * rank * 2,
    )
    units = survival_units(0.5 + 0.5 * torch.rand(requests, gamma, device=device))
    counts = torch.arange(requests * gamma + 1, dtype=torch.float64, device=device)
    inverse = 1.0 / (1e-2 + 1e-5 * counts)
    tops = torch.arange(0, requests * gamma + 1, max(1, requests * gamma // 32), device=device)
    half = torch.tensor([requests * gamma // 2], device=device)
    yield Work("Admission: budget", lambda: admit(units, "budget", budget=half), units.nbytes)
    yield Work("Admission: early stop or hull", lambda: admit(units, "early-stop", inverse=inverse), units.nbytes)
    yield Work("Admission: lookahead", lambda: admit(units, "lookahead", inverse=inverse, tops=tops), units.nbytes)


def print_row(row: Row, header: bool, measured: bool) -> None:
    """One line of the table."""
    if header and measured:
        print(
            f"{'operation':44} {'R':>4} {'median us':>10} {'min..max us':>17} {'MB':>8} {'least us':>9} {'reached':>8}"
        )
    if not measured:
        print(f"{row.name:44} {row.requests:4d} ran in {row.median_s:.2f} s of interpreter")
        return
    spread = f"{row.fastest_s * 1e6:.0f}..{row.slowest_s * 1e6:.0f}"
    print(
        f"{row.name:44} {row.requests:4d} {row.median_s * 1e6:10.1f} {spread:>17} {row.num_bytes / 1e6:8.2f} "
        f"{row.least_s * 1e6:9.2f} {row.share:8.1%}"
    )


def print_goals(rows: list[Row], measured: bool) -> None:
    """Ours beside SGLang's sequence, and the goals of issue 4."""
    if not measured:
        print("everything ran; nothing is compared: no GPU was timed")
        return
    medians = {(row.name, row.requests): row.median_s for row in rows}
    for (name, requests), theirs in medians.items():
        if not name.endswith("SGLang's sequence"):
            continue
        operation = name.rsplit(":", 1)[0]
        for (other, at), ours in medians.items():
            if at == requests and other.startswith(operation) and other != name:
                print(f"{other}, R={requests}: {ours / theirs:.2f} of SGLang's sequence")
    for row in rows:
        if row.name.startswith("Admission") and row.requests == 256:
            verdict = "met" if row.median_s < 30e-6 else "missed"
            print(f"goal {verdict}: {row.name} at R=256 takes {row.median_s * 1e6:.1f} us, goal under 30")


def save(
    path: Path, rows: list[Row], where: dict[str, str], shape: Shape, copy_rate: float, product_rate: float
) -> None:
    """Write the run."""
    content = {
        "meta": {**where, "shape": asdict(shape), "calls_in_a_graph": CALLS},
        "ceilings": {"copy_bytes_per_s": copy_rate, "bfloat16_operations_per_s": product_rate},
        "rows": [{**asdict(row), "share": row.share} for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
