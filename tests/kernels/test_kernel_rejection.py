"""Packed rejection sampling: the kernel against its reference on the same coins, and the reference against the exact
law."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels.rejection import verify  # noqa: E402
from dspark_kernels.rejection_reference import DraftLaw, Sampling, keep_reference, verify_reference  # noqa: E402
from dspark_kernels.rejection_statistics import draft_normaliser  # noqa: E402


def ragged_batch(num_requests, gamma, vocab, dtype, device, seed=0, lengths=None):
    """Packed target logits with padding rows of NaN, drafts near the target, and draft tokens drawn from them."""
    torch.manual_seed(seed)
    if lengths is None:
        lengths = torch.randint(0, gamma + 1, (num_requests,), dtype=torch.int32)
    start = torch.cumsum(lengths + 1, 0) - (lengths + 1)
    target = (2 * torch.randn(int((lengths + 1).sum()) + 3, vocab)).to(dtype)
    target[-3:] = float("nan")
    rows = start[:, None] + torch.minimum(torch.arange(gamma)[None, :], lengths[:, None])
    step_logits = (target[rows].float() + 0.7 * torch.randn(num_requests, gamma, vocab)).to(dtype)
    temperatures = torch.tensor(([1.0, 0.0, 0.6, 1.4] * num_requests)[:num_requests])
    divisor = torch.where(temperatures > 0, temperatures, 1.0)[:, None, None]
    normaliser = torch.logsumexp(step_logits.float() / divisor, dim=-1)
    q = torch.exp(step_logits.float() / divisor - normaliser[:, :, None])
    tokens = torch.multinomial(q.view(-1, vocab), 1).view(num_requests, gamma)
    arguments = [each.to(device) for each in (target, start, lengths, tokens)]
    law = DraftLaw(step_logits.to(device), normaliser.to(device), temperatures.to(device))
    counters = dict(seed=77, request=torch.arange(num_requests, device=device), step=torch.tensor([4], device=device))
    return arguments, temperatures.to(device), law, counters


def per_request(values, num_requests, dtype, device):
    return torch.tensor((values * num_requests)[:num_requests], dtype=dtype, device=device)


FILTERS = {
    "temperature": {},
    "top_k": {"top_k": [0, 3, 1, 999, 20]},
    "top_p": {"top_p": [0.9, 1.0, 0.4]},
    "min_p": {"min_p": [0.1, 0.0, 0.5]},
    "all": {"top_k": [0, 5, 12], "top_p": [0.8, 0.95], "min_p": [0.0, 0.02, 0.2]},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("one_hot", [False, True], ids=["drawn", "argmax draft"])
def test_kernel_decides_as_the_reference(device, filters, dtype, one_hot):
    arguments, temperatures, law, counters = ragged_batch(5, 2, 40, dtype, device)
    kinds = {"top_k": torch.int32}
    given = {name: per_request(values, 5, kinds.get(name, torch.float32), device) for name, values in filters.items()}
    law = None if one_hot else law
    got = verify(*arguments, Sampling(temperatures, **given), law, **counters)
    want = verify_reference(*arguments, Sampling(temperatures, **given), law, **counters)
    assert torch.equal(got.accepted, want.accepted)
    assert torch.equal(got.bonus, want.bonus)


@pytest.mark.parametrize(
    ("num_requests", "gamma", "vocab"), [(1, 1, 2), (1, 1, 5000), (3, 7, 33), (2, 16, 17)], ids=str
)
def test_odd_shapes(device, num_requests, gamma, vocab):
    arguments, temperatures, law, counters = ragged_batch(num_requests, gamma, vocab, torch.float32, device, seed=3)
    got = verify(*arguments, Sampling(temperatures), law, **counters)
    want = verify_reference(*arguments, Sampling(temperatures), law, **counters)
    assert torch.equal(got.accepted, want.accepted)
    assert torch.equal(got.bonus, want.bonus)


@pytest.mark.parametrize("vocab", [3, 2500])
def test_draft_normalisers_of_verified_positions(device, vocab):
    torch.manual_seed(4)
    logits = 3 * torch.randn(3, 2, vocab, device=device)
    temperatures, lengths = torch.tensor([0.0, 1.0, 0.5], device=device), torch.tensor([2, 1, 0], dtype=torch.int32)
    got = draft_normaliser(logits, temperatures, lengths.to(device))
    want = torch.logsumexp(logits / torch.tensor([1.0, 1.0, 0.5], device=device)[:, None, None], dim=-1)
    for request, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(got[request, :length], want[request, :length])


def test_nothing_verified_draws_the_bonus_from_the_anchor_row(device):
    lengths = torch.zeros(4, dtype=torch.int32)
    arguments, temperatures, law, counters = ragged_batch(4, 2, 40, torch.float32, device, lengths=lengths)
    got = verify(*arguments, Sampling(temperatures), law, **counters)
    assert got.accepted.tolist() == [0] * 4
    assert torch.equal(got.bonus, verify_reference(*arguments, Sampling(temperatures), law, **counters).bonus)


def test_greedy_accepts_the_argmax_and_nothing_else(device):
    target = torch.zeros(4, 9, device=device)
    target[0, 3], target[1, 5], target[2, 2], target[3, 8] = 1.0, 1.0, 1.0, 1.0
    tokens = torch.tensor([[3, 5, 0]], device=device)
    got = verify(
        target,
        torch.tensor([0], device=device),
        torch.tensor([3], dtype=torch.int32, device=device),
        tokens,
        Sampling(torch.zeros(1, device=device)),
        None,
        seed=1,
        request=torch.tensor([0], device=device),
        step=torch.tensor([0], device=device),
    )
    assert (got.accepted.tolist(), got.bonus.tolist()) == ([2], [2])


def test_equal_laws_accept_everything(device):
    arguments, _, law, counters = ragged_batch(6, 3, 30, torch.float32, device)
    target, start, lengths, tokens = arguments
    rows = start[:, None] + torch.minimum(torch.arange(3, device=device)[None, :], lengths[:, None])
    ones = torch.ones(6, device=device)
    same = DraftLaw(target[rows], torch.logsumexp(target[rows], dim=-1), ones)
    got = verify(*arguments, Sampling(ones), same, **counters)
    assert torch.equal(got.accepted, lengths)


@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize("filtered", [False, True])
def test_emitted_tokens_follow_the_target_law(length, filtered):
    from scipy import stats

    trials, vocab, gamma = 60_000, 6, 2
    generator = torch.Generator().manual_seed(length + 10 * filtered)
    # Independent rows: what is emitted after the first token must still follow the second row's law.
    target = torch.randn(gamma + 1, vocab, generator=generator) * 1.5
    draft = target[:gamma] + torch.randn(gamma, vocab, generator=generator)
    temperature = 0.8
    top_k = torch.full((trials,), 4, dtype=torch.int32) if filtered else None
    temperatures = torch.full((trials,), temperature)
    q = torch.softmax(draft / temperature, dim=-1)
    tokens = torch.stack([torch.multinomial(q[j], trials, True, generator=generator) for j in range(gamma)], dim=1)
    # Every trial is a request of its own that reads the same packed rows.
    law = DraftLaw(
        draft.expand(trials, gamma, vocab),
        torch.logsumexp(draft / temperature, -1).expand(trials, gamma).contiguous(),
        temperatures,
    )
    got = verify_reference(
        target,
        torch.zeros(trials, dtype=torch.int64),
        torch.full((trials,), length, dtype=torch.int32),
        tokens,
        Sampling(temperatures, top_k=top_k),
        law,
        seed=5,
        request=torch.arange(trials),
        step=torch.tensor([length]),
    )
    keep = keep_reference(target[None], temperatures[:1], None if top_k is None else top_k[:1], None, None)[0]
    p = torch.softmax(torch.where(keep, target.double() / temperature, float("-inf")), dim=-1).numpy()
    first = torch.where(got.accepted >= 1, tokens[:, 0], got.bonus)
    counts = torch.bincount(first, minlength=vocab).numpy()
    assert counts[p[0] == 0].sum() == 0
    assert stats.chisquare(counts[p[0] > 0], trials * p[0][p[0] > 0]).pvalue > 1e-4
    if length >= 1:
        went_on = got.accepted >= 1
        second = torch.where(got.accepted >= 2, tokens[:, 1], got.bonus)[went_on]
        # Given the first token was accepted, the second is a draw from row 1 whatever the first was.
        for token in range(vocab):
            mine = second[tokens[went_on, 0] == token]
            expected = len(mine) * p[1]
            if expected[p[1] > 0].min(initial=np.inf) >= 5:
                counts = torch.bincount(mine, minlength=vocab).numpy()
                assert stats.chisquare(counts[p[1] > 0], expected[p[1] > 0]).pvalue > 1e-5


@pytest.mark.slow
def test_kernel_emits_the_target_law(device):
    from scipy import stats

    trials, vocab = 400, 5
    torch.manual_seed(8)
    target = torch.randn(2, vocab)
    draft = torch.randn(1, vocab)
    tokens = torch.multinomial(torch.softmax(draft[0], -1), trials, True)[:, None]
    ones = torch.ones(trials, device=device)
    law = DraftLaw(
        draft.expand(trials, 1, vocab).to(device),
        torch.logsumexp(draft, -1).expand(trials, 1).contiguous().to(device),
        ones,
    )
    got = verify(
        target.to(device),
        torch.zeros(trials, dtype=torch.int64, device=device),
        torch.ones(trials, dtype=torch.int32, device=device),
        tokens.to(device),
        Sampling(ones),
        law,
        seed=6,
        request=torch.arange(trials, device=device),
        step=torch.tensor([1], device=device),
    )
    first = torch.where(got.accepted.cpu() >= 1, tokens[:, 0], got.bonus.cpu())
    p = torch.softmax(target[0], -1).double().numpy()
    assert stats.chisquare(torch.bincount(first, minlength=vocab).numpy(), trials * p / p.sum()).pvalue > 1e-4


def test_the_accept_coin_and_the_recovery_noise_are_independent():
    """A shared coin would tie the replacement to how narrowly the token was refused."""
    trials = 40_000
    target, draft = torch.tensor([[0.0, 0.3, 0.6], [0.0, 0.0, 0.0]]), torch.tensor([[0.9, 0.0, 0.0]])
    ones = torch.ones(trials)
    law = DraftLaw(draft.expand(trials, 1, 3), torch.logsumexp(draft, -1).expand(trials, 1).contiguous(), ones)
    tokens = torch.zeros(trials, 1, dtype=torch.int64)
    counters = dict(seed=2, request=torch.arange(trials), step=torch.tensor([0]))
    got = verify_reference(
        target,
        torch.zeros(trials, dtype=torch.int64),
        torch.ones(trials, dtype=torch.int32),
        tokens,
        Sampling(ones),
        law,
        **counters,
    )
    from dspark_kernels.philox import ACCEPT, uniform_reference, words_reference

    coin = uniform_reference(words_reference(2, counters["request"], counters["step"], 0, ACCEPT, 1))[:, 0]
    refused = got.accepted == 0
    high = coin > coin[refused].median()
    shares = [(got.bonus[refused & half] == 1).double().mean().item() for half in (high, ~high)]
    assert abs(shares[0] - shares[1]) < 4 * (0.5 / (int(refused.sum()) / 2)) ** 0.5


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"lengths": torch.zeros(2)}, TypeError),
        ({"draft_tokens": torch.zeros(2, 17, dtype=torch.int64)}, ValueError),
        ({"seed": -1}, ValueError),
    ],
)
def test_bad_input_is_refused(change, error):
    options = dict(
        target_logits=torch.zeros(4, 5),
        row_start=torch.tensor([0, 2]),
        lengths=torch.ones(2, dtype=torch.int32),
        draft_tokens=torch.zeros(2, 1, dtype=torch.int64),
        sampling=Sampling(torch.ones(2)),
        law=None,
        seed=0,
        request=torch.arange(2),
        step=torch.tensor([0]),
    )
    with pytest.raises(error):
        verify(**{**options, **change})


def test_filters_keep_what_sorting_keeps():
    logits = torch.tensor([[[2.0, 1.0, 1.0, 0.0, -1.0]]])
    ones = torch.ones(1)
    for top_k, kept in ((1, 1), (2, 3), (3, 3), (4, 4), (0, 5), (9, 5)):
        keep = keep_reference(logits, ones, torch.tensor([top_k], dtype=torch.int32), None, None)
        assert int(keep.sum()) == kept, "tokens that tie with the last one stay"
    for top_p, min_p in itertools.product((0.1, 0.6, 0.99), (0.0, 0.3)):
        keep = keep_reference(logits, ones, None, torch.tensor([top_p]), torch.tensor([min_p]))
        assert keep[0, 0, 0]
