"""The Markov block: SGLang's semantics, and screening that never changes a token."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels.markov import sample_markov_block  # noqa: E402
from dspark_kernels.markov_bounds import markov_bounds  # noqa: E402
from dspark_kernels.markov_heads import MarkovHead  # noqa: E402
from dspark_kernels.markov_reference import markov_reference, shortfall  # noqa: E402

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ["vanilla", "gated", "rnn"]


def make_head(kind, vocab, rank, width, dtype, device, scale=0.5):
    def random(*shape):
        return (scale * torch.randn(*shape)).to(device=device, dtype=dtype)

    projection = {"vanilla": (), "gated": (rank, width + rank), "rnn": (3 * rank, 2 * rank + width)}[kind]
    weights = (random(*projection), random(projection[0])) if projection else (None, None)
    return MarkovHead(kind, random(vocab, rank), random(vocab, rank), *weights)


def make_batch(head, num_requests, gamma, width, dtype, device, temperatures):
    base = (3 * torch.randn(num_requests, gamma, head.vocab)).to(device=device, dtype=dtype)
    hidden = torch.randn(num_requests, gamma, width).to(device=device, dtype=dtype)
    counters = dict(seed=11, request=torch.arange(num_requests, device=device), step=torch.tensor([5], device=device))
    anchor = torch.randint(0, head.vocab, (num_requests,)).to(device)
    given_temperatures = torch.tensor((temperatures * num_requests)[:num_requests], device=device)
    return (head, base, anchor, given_temperatures), {**counters, "hidden": hidden}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_requests", "gamma", "vocab", "rank"), [(1, 1, 100, 5), (17, 2, 333, 16)], ids=["smallest", "two row groups"]
)
def test_block_matches_the_reference(device, kind, dtype, num_requests, gamma, vocab, rank):
    torch.manual_seed(0)
    head = make_head(kind, vocab, rank, 12, dtype, device)
    arguments, options = make_batch(head, num_requests, gamma, 12, dtype, device, [0.0, 1.0, 0.4])
    got = sample_markov_block(*arguments, **options, keep="logits")
    want = markov_reference(*arguments, **options)
    buffer = torch.empty_like(want.step_logits)
    again = sample_markov_block(*arguments, **options, keep="logits", logits_out=buffer)
    assert again.step_logits is buffer and torch.equal(buffer, got.step_logits)
    assert torch.equal(got.tokens, want.tokens)
    assert got.step_logits.dtype == want.step_logits.dtype
    # A dot product summed in another order can fall on the other side of a rounding boundary.
    torch.testing.assert_close(
        got.step_logits, want.step_logits, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )
    torch.testing.assert_close(got.log_normaliser, want.log_normaliser, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_screening_reads_the_same_tokens(device, kind):
    torch.manual_seed(1)
    head = make_head(kind, 500, 8, 6, torch.bfloat16, device)
    arguments, options = make_batch(head, 3, 3, 6, torch.bfloat16, device, [0.0, 1.0, 0.6])
    full = sample_markov_block(*arguments, **options, keep="nothing")
    screened = sample_markov_block(*arguments, **options, keep="normaliser", bounds=markov_bounds(head, 32))
    assert torch.equal(full.tokens, screened.tokens)
    q = torch.exp(markov_reference(*arguments, **options).step_logits.float()[1] - screened.log_normaliser[1, :, None])
    torch.testing.assert_close(q.sum(-1), torch.ones(3, device=device), rtol=1e-2, atol=1e-2)


def test_screening_skips_most_tiles_of_a_peaked_draft(device):
    torch.manual_seed(2)
    head = make_head("vanilla", 1024, 8, 4, torch.bfloat16, device, scale=0.1)
    arguments, options = make_batch(head, 2, 2, 4, torch.bfloat16, device, [0.0, 0.5])
    arguments[1].mul_(4)
    full = sample_markov_block(*arguments, **options, keep="nothing", count_tiles=True)
    screened = sample_markov_block(
        *arguments, **options, keep="nothing", bounds=markov_bounds(head, 32), count_tiles=True
    )
    assert torch.equal(full.tokens, screened.tokens)
    assert full.tiles_read.tolist() == [4, 4]
    assert screened.tiles_read.max() <= 8, "of 32 tiles of 32 tokens"


LOGITS = st.sampled_from([float("-inf"), -2.0, 0.0, 0.0, 0.5, 1.0, 1.0, 300.0, float("nan")])
WEIGHTS = st.sampled_from([-1.0, 0.0, 0.0, 0.5, 1.0, 64.0])


@st.composite
def adversarial(draw):
    """Logits full of ties, infinities and NaN; weights that tie too; temperatures from greedy to hot."""
    kind = draw(st.sampled_from(KINDS))
    # A few sizes stand for all: each is compiled on a GPU.
    num_requests, gamma, vocab, rank = draw(
        st.sampled_from([(1, 1, 20, 1), (3, 3, 70, 3), (1, 3, 64, 3), (3, 1, 20, 1)])
    )
    width = 2
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))

    def tensor(values, *shape):
        pool = draw(st.lists(values, min_size=12, max_size=24))
        size = torch.Size(shape).numel()
        order = torch.randint(
            0, len(pool), (size,), generator=torch.Generator().manual_seed(draw(st.integers(0, 9999)))
        )
        return torch.tensor(pool)[order].view(shape).to(dtype)

    projection = {"vanilla": (), "gated": (rank, width + rank), "rnn": (3 * rank, 2 * rank + width)}[kind]
    weights = (tensor(WEIGHTS, *projection), tensor(WEIGHTS, projection[0])) if projection else (None, None)
    head = MarkovHead(kind, tensor(WEIGHTS, vocab, rank), tensor(WEIGHTS, vocab, rank), *weights)
    batch = (tensor(LOGITS, num_requests, gamma, vocab), tensor(WEIGHTS, num_requests, gamma, width))
    temperatures = draw(
        st.lists(st.sampled_from([0.0, 1e-5, 0.3, 1.0, 5.0]), min_size=num_requests, max_size=num_requests)
    )
    return head, *batch, torch.tensor(temperatures), draw(st.integers(2, 15))


@given(adversarial(), st.booleans())
@FEW
def test_screening_is_exact_on_adversarial_logits(device, case, table):
    head, base, hidden, temperatures, seed = case
    head = MarkovHead(
        head.kind, *(None if w is None else w.to(device) for w in (head.w1, head.w2, head.proj_weight, head.proj_bias))
    )
    rows = base.shape[0]
    options = dict(seed=seed, request=torch.arange(rows, device=device), step=torch.tensor([1], device=device))
    arguments = (head, base.to(device), torch.zeros(rows, dtype=torch.int64, device=device), temperatures.to(device))
    options["hidden"] = hidden.to(device)
    bounds = markov_bounds(head, 16, table=table and head.kind == "vanilla")
    full = sample_markov_block(*arguments, **options, keep="nothing")
    screened = sample_markov_block(*arguments, **options, keep="nothing", bounds=bounds)
    assert torch.equal(full.tokens, screened.tokens)
    greedy = (temperatures == 0).tolist()
    want = markov_reference(*arguments, **options).tokens
    # Every product is exact in float32 for a vanilla head, so that greedy rows must equal the reference token by
    # token.
    if head.kind == "vanilla":
        assert full.tokens[greedy].tolist() == want[greedy].tolist()


def test_drawn_tokens_follow_the_step_distribution(device):
    from scipy import stats

    torch.manual_seed(3)
    rows, vocab = 20_000, 20
    head = make_head("vanilla", vocab, 4, 4, torch.float32, device)
    base = torch.randn(1, 1, vocab, device=device).expand(rows, 1, vocab)
    arguments = (base, torch.full((rows,), 7, device=device), torch.full((rows,), 0.8, device=device))
    options = dict(seed=1, request=torch.arange(rows, device=device), step=torch.tensor([0], device=device))
    drawn = markov_reference(head, *arguments, **options)
    law = torch.exp(drawn.step_logits[0, 0] / 0.8 - drawn.log_normaliser[0, 0]).cpu().double().numpy()
    counts = torch.bincount(drawn.tokens[:, 0].cpu(), minlength=vocab).numpy()
    assert stats.chisquare(counts, rows * law / law.sum()).pvalue > 1e-4
    # The kernel draws the same tokens; three groups of rows show it, the last one not full.
    few, options["request"] = [each[:40] for each in arguments], options["request"][:40]
    got = sample_markov_block(head, *few, **options)
    assert torch.equal(got.tokens, drawn.tokens[:40])


@pytest.mark.slow
def test_kernel_draws_follow_the_step_distribution(device):
    from scipy import stats

    torch.manual_seed(3)
    rows, vocab = 800, 20
    head = make_head("vanilla", vocab, 4, 4, torch.float32, device)
    base = torch.randn(1, 1, vocab, device=device).expand(rows, 1, vocab)
    got = sample_markov_block(
        head,
        base,
        torch.full((rows,), 7, device=device),
        torch.full((rows,), 0.8, device=device),
        seed=1,
        request=torch.arange(rows, device=device),
        step=torch.tensor([0], device=device),
        keep="logits",
    )
    law = torch.exp(got.step_logits[0, 0] / 0.8 - got.log_normaliser[0, 0]).cpu().double().numpy()
    counts = torch.bincount(got.tokens[:, 0].cpu(), minlength=vocab).numpy()
    assert stats.chisquare(counts, rows * law / law.sum()).pvalue > 1e-4


def test_a_redrafted_position_draws_afresh():
    torch.manual_seed(4)
    head = make_head("vanilla", 1000, 4, 4, torch.float32, "cpu", scale=0.01)
    base = torch.zeros(8, 1, 1000)
    options = dict(
        seed=1, request=torch.arange(8), temperatures=torch.ones(8), anchor=torch.zeros(8, dtype=torch.int64)
    )
    first = sample_markov_block(head, base, step=torch.tensor([1]), **options).tokens
    again = sample_markov_block(head, base, step=torch.tensor([1]), **options).tokens
    later = sample_markov_block(head, base, step=torch.tensor([2]), **options).tokens
    assert torch.equal(first, again)
    assert not (first == later).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_logits": torch.zeros(2, 3, 9)}, "base_logits has shape"),
        ({"anchor": torch.zeros(3, dtype=torch.int64)}, "anchor has shape"),
        ({"keep": "all"}, "keep='all'"),
        ({"seed": -5}, "seed=-5"),
        ({"logits_out": torch.zeros(2, 3, 10)}, "needs keep='logits'"),
    ],
)
def test_bad_input_is_refused(change, message):
    head = make_head("vanilla", 10, 4, 4, torch.float32, "cpu")
    options = dict(
        base_logits=torch.zeros(2, 3, 10),
        anchor=torch.zeros(2, dtype=torch.int64),
        temperatures=torch.ones(2),
        seed=0,
        request=torch.arange(2),
        step=torch.tensor([0]),
    )
    with pytest.raises(ValueError, match=message):
        sample_markov_block(head, **{**options, **change})


@pytest.mark.parametrize("table", [True, False])
def test_bounds_follow_weights_that_change_in_place(device, table):
    """Dropped before the change they decide nothing, refilled after it they hold for the new weights; both in place."""
    torch.manual_seed(4)
    head = make_head("vanilla", 300, 8, 6, torch.bfloat16, device, scale=0.1)
    arguments, options = make_batch(head, 3, 3, 6, torch.bfloat16, device, [0.0, 1.0, 0.6])
    bounds = markov_bounds(head, 32, table=table)
    addresses = [tensor.data_ptr() for tensor in (bounds.radius, bounds.norm, bounds.center)]
    bounds.drop()
    head.w2.copy_(4 * torch.randn_like(head.w2))
    head.w1[0].zero_()  # a latent of length 0 meets the infinite radius
    full = sample_markov_block(*arguments, **options, keep="nothing")
    dropped = sample_markov_block(*arguments, **options, keep="nothing", bounds=bounds, count_tiles=True)
    assert torch.equal(full.tokens, dropped.tokens) and (dropped.tiles_read == 10).all()
    bounds.refill(head)
    for refilled in (bounds, markov_bounds(head, 32, table=table)):
        assert torch.equal(
            sample_markov_block(*arguments, **options, keep="nothing", bounds=refilled).tokens, full.tokens
        )
    assert addresses == [tensor.data_ptr() for tensor in (bounds.radius, bounds.norm, bounds.center)]


def test_stale_bounds_bias_but_read_nothing_out_of_bounds(device):
    """What a missed update would do: other tokens, and still tokens that exist."""
    torch.manual_seed(4)
    head = make_head("vanilla", 300, 8, 6, torch.bfloat16, device, scale=0.1)
    arguments, options = make_batch(head, 3, 3, 6, torch.bfloat16, device, [0.0, 1.0, 0.6])
    bounds = markov_bounds(head, 32)
    bounds.table.fill_(float("-inf"))
    stale = sample_markov_block(*arguments, **options, keep="nothing", bounds=bounds)
    assert ((stale.tokens >= 0) & (stale.tokens < 300)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_shortfall_names_a_wrong_token(device, kind):
    torch.manual_seed(6)
    head = make_head(kind, 60, 8, 6, torch.float32, device)
    arguments, options = make_batch(head, 3, 3, 6, torch.float32, device, [0.0, 1.0, 0.6])
    block = sample_markov_block(*arguments, **options, keep="logits")
    gaps, logits = shortfall(*arguments, block.tokens, **options)
    assert float(gaps.max()) < 1e-4 and gaps.shape == (3, 3)
    torch.testing.assert_close(logits, block.step_logits, rtol=1e-4, atol=1e-4)
    wrong = block.tokens.clone()
    wrong[1, 1] = (wrong[1, 1] + 1) % 60
    assert float(shortfall(*arguments, wrong, **options)[0][1, 1]) > 1e-3


def test_bounds_refuse_a_table_that_cannot_hold():
    with pytest.raises(ValueError, match="no table"):
        markov_bounds(make_head("gated", 20, 4, 4, torch.float32, "cpu"), 16, table=True)
    with pytest.raises(ValueError, match="block=48"):
        markov_bounds(make_head("vanilla", 20, 4, 4, torch.float32, "cpu"), 48)
