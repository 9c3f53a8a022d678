"""A live decision on the device against copying the survivals and deciding in NumPy, at 1 to 256 requests."""

from __future__ import annotations

import statistics

from gpu_stages import Stage

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GAMMA = 7
POLICIES = ("early-stop", "hull", "lookahead", "foresight")


def run(stage: Stage) -> None:
    device = stage.device
    import numpy as np
    import torch
    from dspark_kernels.choose import seconds_per_call

    from sglang_dspark.cost import load_profile
    from sglang_dspark.policies import LiveBlock, Past, make_policy
    from sglang_dspark.serving.gpu.device_kernels.live import LiveAdmission

    cost = load_profile("vllm-b300-dsv4-flash")
    live, repeats = LiveAdmission(device), 30 if device.type == "cuda" else 1
    batches = BATCHES if device.type == "cuda" else (1, 4)
    with stage.kernels_run():
        for text in POLICIES:
            policy, table = make_policy(text), {}
            for rows in batches:
                past = Past(rows, GAMMA, cost.prices(rows, GAMMA, 1000.0 * rows), carry=policy.start(GAMMA))
                confidence = torch.rand(rows, GAMMA, device=device)
                expected = policy.decide(past, LiveBlock.of(confidence.cpu().numpy()))
                found = live.decide(policy, past, confidence)
                if found.total != expected.total or not np.array_equal(found.lengths, expected.lengths):
                    raise RuntimeError(f"{text} at R={rows}: the device decides {found}, NumPy {expected}")

                def on_host(policy=policy, past=past, confidence=confidence) -> object:  # type: ignore[no-untyped-def]
                    return policy.decide(past, LiveBlock.of(confidence.cpu().numpy()))

                def on_device(policy=policy, past=past, confidence=confidence) -> object:  # type: ignore[no-untyped-def]
                    return live.decide(policy, past, confidence)

                table[rows] = [
                    round(1e6 * statistics.median(seconds_per_call(call, device, repeats=repeats, graph=False)), 1)
                    for call in (on_device, on_host)
                ]
            stage.note(**{f"{text}: us on the device, on the host, by R": table})
