"""The predicted bias against first principles: exact kernels, lossless policies, and tokens counted in a simulation."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="predictions run the pair in torch")
pytest.importorskip("transformers", reason="predictions run the pair with transformers")
pytest.importorskip("scipy", reason="predictions need scipy")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sglang_dspark.audit.live.prediction import predict  # noqa: E402
from sglang_dspark.audit.live.prompts import Prompt  # noqa: E402
from sglang_dspark.audit.live.settings import AuditSettings  # noqa: E402
from sglang_dspark.audit.live.simulation import SimulatedBatch, after_draft_token  # noqa: E402
from sglang_dspark.cost import (  # noqa: E402
    MeasuredDraft,
    MeasuredVerify,
    SpsAdditiveCostTable,
    StepCost,
    Tiered,
    model_from_table,
)
from sglang_dspark.demo.draft import DSparkDraft  # noqa: E402
from sglang_dspark.demo.pair import Pair, draft_config, target_config  # noqa: E402
from sglang_dspark.errors import InputError  # noqa: E402
from sglang_dspark.policies import make_policy  # noqa: E402

VOCAB, GAMMA = 8, 3
PROMPTS = [Prompt("p:1", (5, 6, 7, 2))]
SETTINGS = AuditSettings(skip=1, tokens=2, samples=1000, background=1, background_tokens=16, concurrency=1)


def cliff(num_requests: int, price: float) -> StepCost:
    """One price for verifying nothing, another for anything: all or nothing is best, and every survival decides."""
    sizes = [num_requests, num_requests * (1 + GAMMA)]
    tiered = Tiered(MeasuredDraft([1], [1e-6]), MeasuredVerify(sizes, [1.0, price]), sizes, 64)
    return model_from_table(SpsAdditiveCostTable(1e-6, [1], [1.0], [1], [1.0], {}, tiered), "cliff")


def random_pair() -> Pair:
    """A random pair whose confidences depend strongly on the drafted tokens."""
    target = target_config(VOCAB, 32, 3)
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(4)
    target.initializer_range = 0.15
    model = Qwen3ForCausalLM(target).eval()
    draft = DSparkDraft(draft_config(target, gamma=GAMMA, head="vanilla", layers=1, rank=8, anchors=2))
    draft.initialize(torch.Generator().manual_seed(5))
    draft.share(model)
    with torch.no_grad():
        weights = draft.confidence_head.proj.weight
        weights.zero_()
        weights[0, -8:] = torch.randn(8, generator=torch.Generator().manual_seed(6)) * 12.0
    return Pair(None, model, draft.eval())  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 9))
def test_the_verified_law_averages_to_the_target(seed: int, vocab: int) -> None:
    """Rejection sampling is exact: K(. | x) averaged over x from the draft's law is the target's law."""
    generator = torch.Generator().manual_seed(seed)
    law, draft = (torch.rand(vocab, generator=generator).double() ** 2 + 1e-3 for _ in range(2))
    law, draft = law / law.sum(), draft / draft.sum()
    mean = sum(draft[x] * after_draft_token(law, draft, x) for x in range(vocab))
    assert torch.allclose(mean, law, atol=1e-12)


class Counting(SimulatedBatch):
    """Counts what the simulated requests really emit."""

    def _commit(self, request, verified, accepted) -> None:  # type: ignore[no-untyped-def]
        first = request.generated
        super()._commit(request, verified, accepted)
        if self.__dict__.setdefault("counts", None) is None:
            self.counts = np.zeros((SETTINGS.tokens, VOCAB))
        if request.length != SETTINGS.length:
            return  # the background
        for offset, token in enumerate([*verified.block.tokens[:accepted], request.anchor]):
            position = first + offset - SETTINGS.skip
            if 0 <= position < SETTINGS.tokens:
                self.counts[position, token] += 1


@pytest.mark.slow
def test_predicted_bias_is_the_bias_of_counted_tokens() -> None:
    """Tokens counted in the same simulation deviate from the target's mean law by what is predicted, within noise."""
    alone = AuditSettings(skip=1, tokens=2, samples=1000, background=0, concurrency=1)
    batch = Counting(random_pair(), make_policy("argmax-live"), cliff(1, 3.0), PROMPTS, [], alone)
    requests = 0
    while requests < 4000:
        requests += batch.step()
    leak, counts = batch.leaks[0], batch.counts
    bias = leak.bias().mean(0)
    total = leak.requests.sum()
    assert 0.2 < leak.cut / leak.blocks < 0.9
    assert not bias[0].any(), "the first token of a block is judged or redrawn whatever was decided"
    assert 0.5 * np.abs(bias[1]).sum() > 0.04, "the second one leaks"
    # The target's law after each request's own prefix predicts the counts only together with the bias.
    for position in (0, 1):
        law = leak.laws[position] / leak.laws[position].sum()
        observed = counts[position] / counts[position].sum()
        assert counts[position].sum() == pytest.approx(total, abs=2)
        noise = np.sqrt(law * (1.0 - law) / total)
        off = np.abs(observed - law - bias[position]).sum()
        assert off < 1.5 * noise.sum()
    assert off < 0.6 * np.abs(observed - law).sum()


@pytest.mark.parametrize("policy", ["fixed:k=1", "early-stop", "argmax:lag=1", "goodput"])
def test_lossless_policies_are_predicted_unbiased(policy: str) -> None:
    (found,) = predict(
        random_pair(), make_policy(policy), cliff(2, 2.2), PROMPTS, PROMPTS, SETTINGS, 96, lambda done, total: None
    )
    assert abs(found.tv) <= 3.5 * found.tv_error + 1e-6 and found.simulated >= 96


def test_a_policy_without_a_draft_has_no_bias_to_predict() -> None:
    with pytest.raises(InputError, match="no bias to predict"):
        predict(random_pair(), make_policy("oracle"), None, PROMPTS, PROMPTS, SETTINGS, 20, lambda done, total: None)
