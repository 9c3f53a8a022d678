"""Confidence and survival against the torch reference and against the policies' NumPy arithmetic."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("msgspec", reason="policies need msgspec")

from dspark_kernels import survival  # noqa: E402

from sglang_dspark.policies import survival_units  # noqa: E402

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.data())
@FEW
def test_survival_is_bit_equal_to_numpy(device, data):
    gamma = data.draw(st.integers(1, 16))
    rows = data.draw(
        st.lists(st.lists(st.floats(0, 1, width=32), min_size=gamma, max_size=gamma), min_size=1, max_size=5)
    )
    confidence = np.array(rows, dtype=np.float32)
    got = survival.survival_units(torch.tensor(confidence, device=device))
    assert np.array_equal(got.cpu().numpy(), survival_units(confidence))


def test_halves_round_to_even(device):
    # 2^-25 times an odd integer lies half-way between two multiples of 2^-24.
    confidence = np.array([[n * 2.0**-25] for n in (1, 3, 5, 7, 9, 2**23 - 1, 2**23 + 1)], dtype=np.float32)
    got = survival.survival_units(torch.tensor(confidence, device=device))
    assert np.array_equal(got.cpu().numpy(), survival_units(confidence))


@pytest.mark.parametrize("shape", [(1, 1, 5, 1), (3, 7, 100, 20), (2, 16, 513, 33)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_markov", [True, False])
def test_confidence_matches_the_reference(device, shape, dtype, with_markov):
    num_requests, gamma, width, rank = shape
    torch.manual_seed(0)
    hidden = torch.randn(num_requests, gamma, width, device=device).to(dtype)
    w1 = torch.randn(50, rank, device=device).to(dtype) if with_markov else None
    weight = 0.2 * torch.randn(1, width + (rank if with_markov else 0), device=device)
    bias = torch.randn(1, device=device) if with_markov else None
    temperatures = torch.rand(gamma, device=device) + 0.5 if gamma > 1 else torch.tensor(0.7, device=device)
    anchor = torch.randint(0, 50, (num_requests,), device=device)
    draft = torch.randint(0, 50, (num_requests, gamma), device=device)
    arguments = (hidden, anchor, draft, weight, bias, temperatures, w1)
    got, want = survival.confidence_survival(*arguments), survival.confidence_reference(*arguments)
    torch.testing.assert_close(got.raw, want.raw, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got.confidence, want.confidence, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.units, survival.survival_units(got.confidence))


def test_confidence_is_blind_to_its_own_token(device):
    torch.manual_seed(2)
    hidden, w1 = torch.randn(2, 4, 16, device=device), torch.randn(30, 8, device=device)
    weight, temperatures = torch.randn(1, 24, device=device), torch.ones(4, device=device)
    anchor = torch.tensor([1, 2], device=device)
    draft = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]], device=device)
    other = draft.clone()
    other[:, 2] = 20
    first = survival.confidence_survival(hidden, anchor, draft, weight, None, temperatures, w1)
    second = survival.confidence_survival(hidden, anchor, other, weight, None, temperatures, w1)
    assert torch.equal(first.confidence[:, :3], second.confidence[:, :3])
    assert not torch.equal(first.confidence[:, 3], second.confidence[:, 3])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="gamma=17"):
        survival.survival_units(torch.ones(1, 17))
    with pytest.raises(TypeError, match="float64"):
        survival.survival_units(torch.ones(1, 4, dtype=torch.float64))
