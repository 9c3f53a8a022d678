"""What the recorder costs the scheduler's thread per decode step, and what share of a step that is.

    python benchmarks/recorder_overhead.py [--step-ms 30]

`Recorder.on_step` on made-up steps of R requests (gamma 7, one lagged publish), in CPU time of the calling thread; the
writer's own thread runs beside it and its CPU time per step is printed too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from types import SimpleNamespace

import numpy as np

from sglang_dspark.cost import load_profile
from sglang_dspark.serving.base.steps import BatchView, SamplingView, StepDecision, StepRecord
from sglang_dspark.serving.recording.recorder import Recorder, start

GAMMA, STEPS = 7, 2000


def request(number: int) -> SimpleNamespace:
    """Enough of SGLang's request for the recorder."""
    sampling = SimpleNamespace(max_new_tokens=1 << 20, temperature=1.0, top_k=1 << 30)
    req = SimpleNamespace(rid=f"{number:032x}", origin_input_ids=[0] * 100, output_ids=[0] * 50, finished_len=None)
    req.sampling_params, req.finished = sampling, lambda: False
    return req


def make_steps(requests: int, rng: np.random.Generator) -> list[StepRecord]:
    """Steps of one batch with fresh confidences."""
    slots, ones = np.arange(requests), np.ones(requests, dtype=np.int64)
    floats = np.ones(requests, dtype=np.float32)
    out = []
    for number in range(STEPS):
        confidence = rng.random((requests, GAMMA), dtype=np.float32)
        lagged = {2: (rng.integers(0, 1 << 24, size=(requests, GAMMA)), np.ones(requests, dtype=bool))}
        lengths = rng.integers(0, GAMMA + 1, size=requests)
        out.append(
            StepRecord(
                step=number,
                forward=number,
                began_s=time.perf_counter(),
                rids=[f"{n:032x}" for n in range(requests)],
                batch=BatchView(slots, ones, 150 * requests),
                prefix_lengths=150 * ones,
                sampling=SamplingView(floats, floats, ones * 50),
                policy="argmax",
                carry=None,
                since_step=0,
                decision=StepDecision("policy", int(lengths.sum()), predicted_s=0.01),
                lagged=lagged,
                prefill_before=False,
                step_s=0.01,
                draft_s=0.002,
                verify_s=0.008,
                confidence=confidence,
                lengths=lengths,
                accepted=np.minimum(lengths, 2),
                uncapped=-ones,
            )
        )
    return out


def recorder(folder: str) -> Recorder:
    """A recorder of a stand-in engine."""
    live = SimpleNamespace(text="argmax", since_step=0)
    decider = SimpleNamespace(
        cost=load_profile("vllm-b300-dsv4-flash"),
        gamma=GAMMA,
        live=live,
        shadow=None,
        explore=0.0,
        steps=STEPS,
        loop="overlap",
    )
    arguments = SimpleNamespace(speculative_dspark_confidence_sts_path=None)
    return start(
        folder,
        SimpleNamespace(decider=decider),
        arguments,
        mode="compact",
        loop="overlap",
        rank=0,
        texts=False,
        limits={},
    )


def main() -> None:
    """Print one line a batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step-ms", type=float, default=30.0, help="a decode step's time to compare with")
    step_s = parser.parse_args().step_ms / 1e3
    print(f"{'requests':>8} {'median us':>10} {'p99 us':>8} {'share of step':>14} {'thread us':>10} {'bytes/step':>11}")
    for requests in (1, 8, 48, 256):
        steps = make_steps(requests, np.random.default_rng(0))
        with tempfile.TemporaryDirectory() as folder:
            one = recorder(folder)
            one.on_prefill([request(number) for number in range(requests)], 100)
            spent, process = [], time.process_time()
            for step in steps:
                begun = time.thread_time()
                one.on_step(step)
                spent.append(time.thread_time() - begun)
            stats = one.writer.close(60.0)
            beside = time.process_time() - process - sum(spent)
        assert stats.dropped == 0
        median, rarely = np.percentile(spent, [50, 99])
        print(
            f"{requests:8} {1e6 * median:10.1f} {1e6 * rarely:8.1f} {median / step_s:14.3%} "
            f"{1e6 * beside / STEPS:10.1f} {stats.packed_bytes / STEPS:11.0f}"
        )


if __name__ == "__main__":
    main()
