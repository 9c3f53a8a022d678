"""The reference loop on small random pairs: exact acceptance, and the same numbers as in training."""

import pytest

torch = pytest.importorskip("torch", reason="the demo pair needs torch (extra `serve`)")
transformers = pytest.importorskip("transformers", reason="the demo pair needs transformers (extra `serve`)")
stats = pytest.importorskip("scipy.stats", reason="the tests of laws need scipy (extra `test`)")

from sglang_dspark.demo import reference  # noqa: E402
from sglang_dspark.demo.draft import HEADS, DSparkDraft, target_features  # noqa: E402
from sglang_dspark.demo.pair import Pair, draft_config, target_config  # noqa: E402
from sglang_dspark.demo.training import block_mask, continuations  # noqa: E402
from sglang_dspark.errors import InputError  # noqa: E402

VOCAB = 12
PROMPT = [3, 4, 5, 6, 7]


def random_pair(head: str, gamma: int = 3, vocab: int = VOCAB) -> Pair:
    """An untrained pair; larger weights than in training make its laws far from uniform and from each other."""
    config = target_config(vocab, hidden=32, layers=3)
    config.initializer_range = 0.4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        target = transformers.Qwen3ForCausalLM(config).eval().requires_grad_(False)
    draft = DSparkDraft(draft_config(config, gamma=gamma, head=head, layers=1, rank=8, anchors=4))
    draft.initialize(torch.Generator().manual_seed(1))
    draft.share(target)
    return Pair(None, target, draft.eval().requires_grad_(False))


@pytest.mark.parametrize("head", HEADS)
def test_greedy_text_is_the_target_s_own(head: str) -> None:
    pair = random_pair(head)
    made = reference.generate(pair, PROMPT, 40, 0.0, torch.Generator().manual_seed(0))
    probabilities = reference.next_token_probabilities(pair.target, [*PROMPT, *made.tokens], 1.0, last=41)
    assert made.tokens == probabilities[:-1].argmax(-1).tolist()
    assert 0 < sum(r.accepted for r in made.rounds) < 3 * len(made.rounds), "both outcomes must be exercised"


@pytest.mark.parametrize("head", HEADS)
def test_block_in_the_loop_equals_the_masked_block_of_training(head: str) -> None:
    """One anchor drafted behind its context alone, against the same anchor among others in a training batch."""
    pair, gamma = random_pair(head), 3
    ids = torch.randint(2, VOCAB, (1, 20), generator=torch.Generator().manual_seed(2))
    out = pair.target(ids, output_hidden_states=True, use_cache=False)
    features = target_features(out.hidden_states, pair.draft.config.target_layer_ids)
    anchor = torch.tensor([[15, 4, 9]])
    positions = anchor[..., None] + torch.arange(gamma)
    context = pair.draft.context(features, torch.arange(20)[None])
    hidden = pair.draft.backbone(ids[:, anchor[0]], positions.flatten(1), context, block_mask(anchor, gamma, 20))

    alone = pair.draft.context(features[:, :9], torch.arange(9)[None])
    generator = torch.Generator().manual_seed(3)
    block = reference.draft_block(pair.draft, int(ids[0, 9]), 9, alone, 1.0, generator)
    previous = torch.tensor([int(ids[0, 9]), *block.tokens[:-1]])
    forced = pair.draft.forced_logits(hidden[0, 2], previous).softmax(-1)
    confidence = pair.draft.confidence_logits(hidden[0, 2], previous).sigmoid()
    torch.testing.assert_close(block.laws, forced, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(block.confidence), confidence, atol=1e-5, rtol=1e-4)


def test_acceptance_emits_the_target_s_law() -> None:
    """First emitted token of a one-token block over many draws, against the target's law (G-test)."""
    generator = torch.Generator().manual_seed(4)
    draft, target = torch.tensor([[0.5, 0.3, 0.1, 0.1]]), torch.tensor([[0.1, 0.4, 0.5, 0.0], [0.25] * 4])
    draws, counts, accepted = 6000, [0, 0, 0, 0], 0
    for token in torch.multinomial(draft[0], draws, replacement=True, generator=generator).tolist():
        count, following = reference.accept([token], draft, target, generator)
        counts[token if count else following] += 1
        accepted += count
    assert counts[3] == 0
    assert stats.power_divergence(counts[:3], [draws * p for p in (0.1, 0.4, 0.5)], lambda_=0).pvalue > 1e-3
    overlap = torch.minimum(draft[0], target[0]).sum().item()
    assert stats.binomtest(accepted, draws, overlap).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["all", "threshold"])
def test_sampled_text_follows_the_target_s_law(rule: str) -> None:
    """Joint law of the second and third token after the prompt, against the target's, with and without trimming."""
    pair, draws, vocab = random_pair("vanilla", gamma=2, vocab=4), 3000, 4
    lengths = []

    def threshold(confidence) -> int:
        lengths.append(next((k for k, c in enumerate(confidence) if c < 0.5), len(confidence)))
        return lengths[-1]

    generator, counts = torch.Generator().manual_seed(5), torch.zeros(vocab, vocab)
    decide = threshold if rule == "threshold" else None
    for _ in range(draws):
        made = reference.generate(pair, [2, 3, 2], 3, 1.0, generator, verify_length=decide)
        counts[made.tokens[1], made.tokens[2]] += 1
    expected = torch.zeros(vocab, vocab)
    first = reference.next_token_probabilities(pair.target, [2, 3, 2])[0]
    for a in range(vocab):
        second = reference.next_token_probabilities(pair.target, [2, 3, 2, a])[0]
        for b in range(vocab):
            third = reference.next_token_probabilities(pair.target, [2, 3, 2, a, b])[0]
            expected[b] += first[a] * second[b] * third
    if rule == "threshold":
        assert len(set(lengths)) > 1, "the rule must trim some blocks and not others"
    seen, wanted = counts.double().flatten(), draws * expected.double().flatten() / expected.double().sum()
    assert wanted.min() > 5, "every pair of tokens must be expected often enough for the G-test"
    assert stats.power_divergence(seen.tolist(), wanted.tolist(), lambda_=0).pvalue > 1e-3


def test_generation_stops_at_its_length_and_at_eos() -> None:
    pair = random_pair("vanilla")
    full = reference.generate(pair, PROMPT, 17, 1.0, torch.Generator().manual_seed(6)).tokens
    assert len(full) == 17
    eos = full[8]
    cut = reference.generate(pair, PROMPT, 17, 1.0, torch.Generator().manual_seed(6), eos=eos).tokens
    assert cut == full[: full.index(eos) + 1]
    single = reference.generate(pair, PROMPT, 1, 1.0, torch.Generator().manual_seed(6))
    assert len(single.tokens) == 1 and not single.rounds


def test_no_verification_is_plain_decoding() -> None:
    pair = random_pair("vanilla")
    made = reference.generate(pair, PROMPT, 9, 0.0, torch.Generator().manual_seed(0), verify_length=lambda _: 0)
    assert made.accept_length == 1 and len(made.rounds) == 8


@pytest.mark.parametrize("prompt, tokens, temperature", [([], 4, 1.0), (PROMPT, 0, 1.0), (PROMPT, 4, -1.0)])
def test_bad_requests_are_refused(prompt: list[int], tokens: int, temperature: float) -> None:
    with pytest.raises(InputError, match="generate needs"):
        reference.generate(random_pair("vanilla"), prompt, tokens, temperature, torch.Generator())


def test_continuations_are_greedy_or_sampled_row_by_row() -> None:
    """The batched text that the draft learns from: greedy rows are the reference loop's, the others differ by seed."""
    pair, greedy = random_pair("vanilla"), torch.tensor([True, False])
    prompts = torch.tensor([PROMPT, PROMPT])
    first, second = (continuations(pair.target, prompts, 16, greedy, seed) for seed in (0, 1))
    made = reference.generate(pair, PROMPT, 16, 0.0, torch.Generator())
    assert first[0].tolist() == second[0].tolist() == [*PROMPT, *made.tokens]
    assert first[1].tolist() != second[1].tolist()
