"""The device form of `allocate` gives the same bits as NumPy, ties and saturated confidences included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="admission on a device is torch code")

from sglang_dspark.policies import (  # noqa: E402
    LiveBlock,
    NoPrices,  # noqa: E402
    Past,
    Plan,
    allocate,
    survival_units,
)
from sglang_dspark.policies.classes import of_plan  # noqa: E402
from sglang_dspark.serving.base.admission import (  # noqa: E402
    allocate_on_device,
    corrected_on_device,
    known_lengths,
    planned_lengths,
    survival_units_on_device,
)

SPECIAL = [0.0, 1.0, 0.5, np.float32(1 - 2**-24), np.nan, np.inf, -1.0]
CONFIDENCES = st.one_of(st.sampled_from(SPECIAL), st.floats(0, 1, width=32))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_same_bits_as_numpy(data: st.DataObject) -> None:
    num_requests, gamma = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 8))
    values = data.draw(st.lists(CONFIDENCES, min_size=num_requests * gamma, max_size=num_requests * gamma))
    confidence = np.array(values, dtype=np.float32).reshape(num_requests, gamma)
    floor = data.draw(st.integers(0, gamma))
    cap = data.draw(st.integers(floor, gamma))
    limits = st.lists(st.integers(0, gamma), min_size=num_requests, max_size=num_requests)
    caps = data.draw(st.one_of(st.none(), limits.map(lambda values: np.array(values, dtype=np.int64))))
    least, most = Past(num_requests, gamma, NoPrices(), caps=caps).totals(floor, cap)
    correction = data.draw(st.sampled_from([None, (1.3, -0.7), (0.2, 4.0), (5.0, -4.0)]))
    plan = Plan(data.draw(st.integers(least, most)), floor, cap, caps, None, correction)
    expected = of_plan(plan, LiveBlock.of(confidence)).lengths
    assert int(expected.sum()) == plan.budget and (caps is None or (expected <= caps).all())
    tensor = torch.from_numpy(confidence)
    assert np.array_equal(survival_units_on_device(tensor).numpy(), survival_units(confidence))
    assert np.array_equal(allocate_on_device(corrected_on_device(tensor, correction), plan).numpy(), expected)
    assert np.array_equal(planned_lengths(tensor, plan).numpy(), expected)
    known = known_lengths(plan, num_requests)
    assert known is None or np.array_equal(known, expected), "FlashInfer plans from these without a look at the device"
    assert known is not None or least < plan.budget < most


@pytest.mark.gpu
def test_same_bits_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    generator = np.random.default_rng(0)
    for num_requests in (1, 8, 64, 256):
        confidence = generator.random((num_requests, 7), dtype=np.float32)
        confidence[generator.random(confidence.shape) < 0.2] = 1.0
        for budget in (0, 3, num_requests, 4 * num_requests, 7 * num_requests):
            plan = Plan(min(budget, 7 * num_requests), 0, 7)
            expected = allocate(survival_units(confidence), plan.budget)
            assert np.array_equal(planned_lengths(torch.from_numpy(confidence).cuda(), plan).cpu().numpy(), expected)
