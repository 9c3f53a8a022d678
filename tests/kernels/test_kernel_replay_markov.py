"""The Markov block at served sizes inside a CUDA graph, replayed with other inputs, against its reference.

Needs torch and triton alone. Without a GPU the same tests run small in the interpreter, uncaptured.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels.markov import sample_markov_block  # noqa: E402
from dspark_kernels.markov_bounds import markov_bounds  # noqa: E402
from dspark_kernels.markov_heads import MarkovHead  # noqa: E402
from dspark_kernels.philox import DRAFT, gumbel_reference, words_reference  # noqa: E402
from replay import Replayed, sizes  # noqa: E402

SEED = 987_654_321_987_654_321


def make_head(kind, at, device):
    """Weights in eighths: every product and sum of a vanilla head is exact in float32, in whatever order."""

    def eighths(*shape):
        return (torch.randint(-2, 3, shape, device=device) / 8).bfloat16()

    columns = {"vanilla": None, "gated": (at.rank, at.width + at.rank), "rnn": (3 * at.rank, 2 * at.rank + at.width)}[
        kind
    ]
    projection = () if columns is None else (eighths(*columns) / 16, eighths(columns[0]))
    return MarkovHead(kind, eighths(at.vocab, at.rank), eighths(at.vocab, at.rank), *projection)


def make_inputs(at, device):
    temperatures = torch.tensor(([0.0, 1.0, 0.6] * at.requests)[: at.requests], device=device)
    return {
        "base_logits": (4 * torch.randn(at.requests, at.gamma, at.vocab, device=device)).bfloat16(),
        "anchor": torch.randint(0, at.vocab, (at.requests,), device=device),
        "temperatures": temperatures.roll(int(torch.randint(0, 3, ()))),
        "request": torch.randint(0, 1 << 32, (at.requests,), device=device),
        "step": torch.randint(0, 1 << 40, (1,), device=device),
        "hidden": torch.randn(at.requests, at.gamma, at.width, device=device).bfloat16(),
    }


def steps_given(head, tokens, *, base_logits, anchor, temperatures, request, step, hidden):
    """Of every position, given the tokens before it: the step's logits and its scores, [R, V] each."""
    state, previous = head.first_state(hidden), anchor
    sampled = (temperatures > 0)[:, None]
    divisor = torch.where(sampled, temperatures[:, None], 1.0)
    for position in range(tokens.shape[1]):
        latent, state = head.latent(previous, hidden[:, position], state)
        bias = torch.nn.functional.linear(latent.float(), head.w2.float()).to(head.w2.dtype).float()
        logits = (base_logits[:, position].float() + bias).to(head.step_dtype(base_logits.dtype))
        noise = gumbel_reference(words_reference(SEED, request, step, position, DRAFT, head.vocab))
        yield logits, torch.where(sampled, logits.float() / divisor + noise, logits.float())
        previous = tokens[:, position]


@pytest.mark.parametrize("requests", [1, 64])
@pytest.mark.parametrize("screen", ["full pass", "table", "general bounds"])
def test_vanilla_block(device, requests, screen):
    at = sizes(device, requests)
    torch.manual_seed(requests)
    head = make_head("vanilla", at, device)
    block = 256 if device.type == "cuda" else 16
    bounds = None if screen == "full pass" else markov_bounds(head, block, table=screen == "table")
    drafted = Replayed(
        lambda **i: sample_markov_block(head, **i, seed=SEED, bounds=bounds, keep="logits"),
        device,
        make_inputs(at, device),
    )
    for _ in range(2):
        inputs = make_inputs(at, device)
        got = drafted(inputs)
        greedy = inputs["temperatures"] == 0
        divisor = torch.where(greedy, 1.0, inputs["temperatures"])[:, None]
        for position, (logits, scores) in enumerate(steps_given(head, got.tokens, **inputs)):
            assert torch.equal(got.step_logits[:, position], logits)
            token = got.tokens[:, position]
            assert torch.equal(token[greedy], scores[greedy].argmax(dim=1))
            # The noise's logarithms differ in their last bits between a GPU's instruction and torch.
            assert (scores.gather(1, token[:, None])[:, 0] >= scores.amax(dim=1) - 1e-4).all()
            want = torch.logsumexp(logits.float() / divisor, dim=-1)
            torch.testing.assert_close(got.log_normaliser[:, position], want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["gated", "rnn"])
def test_other_heads(device, kind):
    at = sizes(device, 8)
    torch.manual_seed(5)
    head = make_head(kind, at, device)
    bounds = markov_bounds(head, 256 if device.type == "cuda" else 16)
    plain, screened = (
        Replayed(
            lambda b=b, **i: sample_markov_block(head, **i, seed=SEED, bounds=b, keep="nothing"),
            device,
            make_inputs(at, device),
        )
        for b in (None, bounds)
    )
    inputs = make_inputs(at, device)
    tokens = plain(inputs).tokens
    assert torch.equal(screened(inputs).tokens, tokens)
    for position, (_, scores) in enumerate(steps_given(head, tokens, **inputs)):
        best = scores.amax(dim=1)
        # Dot products summed in another order may round to the neighbour: a unit of bfloat16, divided by the least T.
        unit = 2.0**-7 * best.abs().clamp(min=1.0) / 0.6
        assert (scores.gather(1, tokens[:, position, None])[:, 0] >= best - unit).all()
