"""Each kernel at served sizes inside a CUDA graph, replayed with other inputs, against its reference.

Needs torch and triton alone. Without a GPU the same tests run small in the interpreter, uncaptured.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels.admission import admit  # noqa: E402
from dspark_kernels.admission_reference import admit_reference  # noqa: E402
from dspark_kernels.philox import DRAFT, draw_words, words_reference  # noqa: E402
from dspark_kernels.rejection import verify  # noqa: E402
from dspark_kernels.rejection_reference import DraftLaw, Sampling, verify_reference  # noqa: E402
from dspark_kernels.rejection_statistics import draft_normaliser  # noqa: E402
from dspark_kernels.survival import (  # noqa: E402
    confidence_reference,
    confidence_survival,
    survival_reference,
    survival_units,
)
from replay import Replayed, sizes  # noqa: E402

SEED = 987_654_321_987_654_321


def counters(requests, device):
    """Identities and a step count, other ones at every call."""
    request = torch.randint(0, 1 << 32, (requests,), device=device)
    return {"request": request, "step": torch.randint(0, 1 << 40, (1,), device=device)}


@pytest.mark.parametrize("requests", [1, 64])
def test_words(device, requests):
    at = sizes(device, requests)
    drawn = Replayed(
        lambda **i: draw_words(SEED, **i, position=6, stream=DRAFT, count=at.vocab),
        device,
        counters(at.requests, device),
    )
    for _ in range(2):
        inputs = counters(at.requests, device)
        assert torch.equal(drawn(inputs), words_reference(SEED, **inputs, position=6, stream=DRAFT, count=at.vocab))


@pytest.mark.parametrize("requests", [1, 256])
def test_survivals(device, requests):
    at = sizes(device, requests)

    def inputs():
        confidence = torch.rand(at.requests, at.gamma, device=device)
        return {"confidence": confidence.where(torch.rand_like(confidence) > 0.1, 1.0)}

    units = Replayed(survival_units, device, inputs())
    for _ in range(2):
        other = inputs()
        assert torch.equal(units(other), survival_reference(other["confidence"]))


@pytest.mark.parametrize("requests", [1, 64])
def test_confidences(device, requests):
    at = sizes(device, requests)
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(1, at.width + at.rank, device=device)
    w1 = torch.randn(at.vocab, at.rank, device=device).bfloat16()
    bias, temperatures = torch.randn(1, device=device), torch.rand(at.gamma, device=device) + 0.5

    def inputs():
        return {
            "hidden": torch.randn(at.requests, at.gamma, at.width, device=device).bfloat16(),
            "anchor": torch.randint(0, at.vocab, (at.requests,), device=device),
            "draft": torch.randint(0, at.vocab, (at.requests, at.gamma), device=device),
        }

    found = Replayed(
        lambda **i: confidence_survival(**i, weight=weight, bias=bias, temperatures=temperatures, w1=w1),
        device,
        inputs(),
    )
    for _ in range(2):
        other = inputs()
        got = found(other)
        want = confidence_reference(**other, weight=weight, bias=bias, temperatures=temperatures, w1=w1)
        torch.testing.assert_close(got.raw, want.raw, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.confidence, want.confidence, rtol=1e-4, atol=1e-5)
        assert torch.equal(got.units, survival_reference(got.confidence))


@pytest.mark.parametrize("requests", [1, 256])
@pytest.mark.parametrize("rule", ["budget", "early-stop", "filled", "lookahead"])
def test_admission(device, requests, rule):
    at = sizes(device, requests)
    count = at.requests * at.gamma
    counts = torch.arange(count + 1, device=device)
    top = torch.minimum((counts // 32 + 1) * 32, counts[-1])

    def inputs():
        # Prices near what a batch of this size earns, so that a walk stops somewhere inside.
        seconds = 1.0 + torch.rand(1, device=device, dtype=torch.float64) * top / at.requests
        given = {"units": survival_reference(0.5 + 0.5 * torch.rand(at.requests, at.gamma, device=device))}
        if rule == "budget":
            return {**given, "budget": torch.randint(0, count + 1, (1,), device=device)}
        tables = {"filled": {"fill_to": top}, "lookahead": {"tops": top.unique()}}
        return {**given, "inverse": 1 / seconds, **tables.get(rule, {})}

    name = "early-stop" if rule == "filled" else rule
    admitted = Replayed(lambda **i: admit(**i, rule=name, floor=at.gamma // 4), device, inputs())
    for _ in range(3):
        other = inputs()
        got = admitted(other)
        want = admit_reference(**{key: tensor.cpu() for key, tensor in other.items()}, rule=name, floor=at.gamma // 4)
        assert torch.equal(got.lengths.cpu(), want.lengths) and torch.equal(got.total.cpu(), want.total)


FILTERS = {
    "plain": {},
    "filtered": {"top_k": [0, 50, 3, 1], "top_p": [0.95, 1.0, 0.5], "min_p": [0.0, 0.02]},
}


def verification(at, device, filters):
    """A packed verify whose verify lengths fill a part of the rows, with drafts near the target."""
    width = at.gamma + 1
    lengths = torch.randint(0, width, (at.requests,), device=device, dtype=torch.int32)
    target = (2 * torch.randn(at.requests * width, at.vocab, device=device)).bfloat16()
    start = (torch.cumsum(lengths + 1, 0) - (lengths + 1)).long()
    rows = start[:, None] + torch.minimum(torch.arange(at.gamma, device=device), lengths[:, None])
    step_logits = (target[rows].float() + 0.7 * torch.randn(at.requests, at.gamma, at.vocab, device=device)).bfloat16()
    temperatures = torch.tensor(([1.0, 0.0, 0.6, 1.4] * at.requests)[: at.requests], device=device)
    divisor = torch.where(temperatures > 0, temperatures, 1.0)[:, None, None]
    law = torch.softmax(step_logits.float() / divisor, dim=-1)
    tokens = torch.multinomial(law.view(-1, at.vocab), 1).view(at.requests, at.gamma)
    kinds = {"top_k": torch.int32}
    sampling = {
        name: torch.tensor((values * at.requests)[: at.requests], dtype=kinds.get(name, torch.float32), device=device)
        for name, values in filters.items()
    }
    return {
        "target_logits": target,
        "row_start": start,
        "lengths": lengths,
        "draft_tokens": tokens,
        "step_logits": step_logits,
        "temperatures": temperatures,
        **sampling,
        **counters(at.requests, device),
    }


def verified(run, *, with_law, step_logits, temperatures, lengths, request, step, **others):
    """`verify` or its reference, with the normaliser of the draft's law computed here as the engine does."""
    filters = {name: others.pop(name) for name in ("top_k", "top_p", "min_p") if name in others}
    law = None
    if with_law:
        law = DraftLaw(step_logits, draft_normaliser(step_logits, temperatures, lengths), temperatures)
    sampling = Sampling(temperatures, **filters)
    return run(**others, lengths=lengths, sampling=sampling, law=law, seed=SEED, request=request, step=step)


@pytest.mark.parametrize("requests", [1, 64])
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("with_law", [True, False], ids=["drawn", "argmax draft"])
def test_rejection(device, requests, filters, with_law):
    at = sizes(device, requests)
    torch.manual_seed(requests)

    def inputs():
        return verification(at, device, FILTERS[filters])

    decided = Replayed(lambda **i: verified(verify, with_law=with_law, **i), device, inputs())
    for _ in range(2):
        other = inputs()
        got, want = decided(other), verified(verify_reference, with_law=with_law, **other)
        wrong = (got.accepted != want.accepted) | (got.bonus != want.bonus)
        # Sums over a vocabulary round in another order: a coin or a race that is as close as that may fall otherwise.
        assert int(wrong.sum()) <= at.requests // 32


@pytest.mark.parametrize("requests", [1, 64])
def test_draft_normalisers(device, requests):
    at = sizes(device, requests)

    def inputs():
        return {
            "step_logits": (3 * torch.randn(at.requests, at.gamma, at.vocab, device=device)).bfloat16(),
            "temperatures": torch.rand(at.requests, device=device) + 0.5,
            "lengths": torch.randint(1, at.gamma + 1, (at.requests,), device=device, dtype=torch.int32),
        }

    normalisers = Replayed(draft_normaliser, device, inputs())
    for _ in range(2):
        other = inputs()
        got = normalisers(other)
        want = torch.logsumexp(other["step_logits"].float() / other["temperatures"][:, None, None], dim=-1)
        inside = torch.arange(at.gamma, device=device) < other["lengths"][:, None]
        torch.testing.assert_close(got[inside], want[inside], rtol=1e-5, atol=1e-5)
