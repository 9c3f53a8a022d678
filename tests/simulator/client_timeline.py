"""What a streaming client of a simulated run would have seen, request by request, kept apart from the engine's sums."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from sglang_dspark.policies import Policy
from simulator.engine.run import Assembly, Setting, assemble


@dataclass
class ClientOutput:
    """One request as bench_serving's native backend notes it: a chunk's gap is spread over its tokens.

    The fields that SGLang's `RequestFuncOutput` has, in seconds.
    """

    start_time: float
    success: bool = True
    ttft: float = 0.0
    latency: float = 0.0
    itl: list[float] = field(default_factory=list)
    output_len: int = 0
    prompt_len: int = 0
    generated_text: str = ""

    def take(self, now: float, tokens: int) -> None:
        """A chunk arrives."""
        if self.output_len == 0:
            self.ttft = now - self.start_time
        else:
            gap = now - self.start_time - self.latency
            self.itl += [gap / tokens] * tokens
        self.latency = now - self.start_time
        self.output_len += tokens


def watched(setting: Setting, policy: Policy) -> tuple[Assembly, list[ClientOutput]]:
    """A finished run, and its clients' view; requests that were refused have success False."""
    chunks: dict[int, list[tuple[float, int]]] = defaultdict(list)
    run = assemble(setting, policy, on_tokens=lambda request, now, tokens: chunks[request].append((now, tokens)))
    run.env.run(until=run.router.done)
    outputs = []
    for request, sent in enumerate(run.recorder.sent_s.tolist()):
        output = ClientOutput(sent, prompt_len=int(run.trace.input_length[request]))
        for now, tokens in chunks[request]:
            output.take(now, tokens)
        output.success = bool(np.isfinite(run.recorder.finish_s[request]))
        outputs.append(output)
    return run, outputs
