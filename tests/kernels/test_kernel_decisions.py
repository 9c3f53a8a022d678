"""Plans and stopping rules decided on the device, in place of the policies that decide on the host."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("msgspec", reason="policies need msgspec")

from sglang_dspark.cost import StepPrices  # noqa: E402
from sglang_dspark.policies import LiveBlock, Past, Plan, allocate, make_policy, survival_units  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.live import LiveAdmission, measure_live  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.operations import admit_plan  # noqa: E402


@pytest.mark.parametrize(("budget", "floor", "cap"), [(0, 0, 3), (5, 0, 3), (7, 1, 2), (99, 0, 3)])
def test_a_plan_takes_what_the_policies_take(device, budget, floor, cap):
    confidence = torch.rand(4, 3, generator=torch.Generator().manual_seed(4))
    got = admit_plan(confidence.to(device), Plan(budget, floor, cap))
    assert np.array_equal(got.cpu().numpy(), allocate(survival_units(confidence.numpy()), budget, floor, cap))
    assert got.dtype == torch.int64


def staircase(num_requests, gamma):
    """Prices with graph tiers, one dip and an eager tail."""
    count = num_requests * gamma + 1
    tops = [top for top in (2, 5, 9, 14, 20) if top < count] or [count - 1]
    top = np.array([next((end for end in tops if end >= k), k) for k in range(count)], dtype=np.int64)
    seconds = np.array(
        [0.008 + 0.0004 * end - (0.0015 if end == 9 else 0.0) + (0.02 if end > tops[-1] else 0.0) for end in top]
    )
    return StepPrices(seconds, seconds.copy(), top, tops[-1])


@pytest.mark.parametrize(
    "text", ["early-stop", "hull", "hull:dips=false", "hull:fill=false", "lookahead", "lookahead:floor=1,cap=3"]
)
def test_live_rules_on_the_device_decide_as_the_policy(device, text):
    policy, live = make_policy(text), LiveAdmission(device)
    generator = np.random.default_rng(6)
    for num_requests in (1, 3, 7):
        past = Past(num_requests, 4, staircase(num_requests, 4))
        assert live.serves(policy, num_requests, 4)
        for _ in range(6):
            confidence = generator.beta(4, 1, size=(num_requests, 4)).astype(np.float32)
            want = policy.decide(past, LiveBlock.of(confidence))
            got = live.decide(policy, past, torch.from_numpy(confidence).to(device))
            assert (got.lengths.tolist(), got.total) == (want.lengths.tolist(), want.total)
    assert len(live._tables) == 3, "one table per prices"


def test_rules_without_a_kernel_stay_on_the_host():
    live, device = LiveAdmission(torch.device("cpu")), torch.device("cpu")
    assert not live.serves(make_policy("threshold:t=0.5"), 4, 4)
    assert not live.serves(make_policy("hull"), 4, 17)
    assert not live.serves(make_policy("hull"), 1025, 7)
    past = Past(3, 4, staircase(3, 4))
    assert "no kernel for threshold" in measure_live(make_policy("threshold:t=0.5"), past, device).reason
    assert "no CUDA device" in measure_live(make_policy("hull"), past, device).reason
    assert measure_live(make_policy("hull"), past, device, "ours").kernels == "ours"
