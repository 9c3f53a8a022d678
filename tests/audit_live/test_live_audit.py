"""The whole audit, in process: a tiny target served faithfully, with planted faults, or as another model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the audit computes the target's laws with torch")
pytest.importorskip("transformers", reason="the audit loads the target with transformers")
httpx = pytest.importorskip("httpx", reason="the audit's client needs httpx")
pytest.importorskip("scipy", reason="the audit's tests need scipy")

from tiny_server import GAMMA, VOCAB, TinyServer, tiny_model  # noqa: E402

from sglang_dspark.audit.live import greedy  # noqa: E402
from sglang_dspark.audit.live.audit import audit_server  # noqa: E402
from sglang_dspark.audit.live.client import Reply, Server  # noqa: E402
from sglang_dspark.audit.live.noise import noise_floor  # noqa: E402
from sglang_dspark.audit.live.prompts import Prompt  # noqa: E402
from sglang_dspark.audit.live.settings import AuditSettings  # noqa: E402
from sglang_dspark.audit.live.target import ExactTarget  # noqa: E402
from sglang_dspark.audit.live.verdict import AuditReport  # noqa: E402
from sglang_dspark.errors import InputError  # noqa: E402

PROMPTS = [Prompt("p:1", (5, 6, 7)), Prompt("p:2", (9, 1))]
SETTINGS = AuditSettings(
    skip=2, tokens=2, samples=1500, concurrency=250, background=1, control=3, greedy_tokens=12, detect=0.08, seed=1
)


class Words:
    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCAB for letter in text]


def target(model: Any) -> ExactTarget:
    return ExactTarget(model, Words())


def audit(settings: AuditSettings = SETTINGS, served: Any = None, **fault: Any) -> AuditReport:
    model = tiny_model()
    fake = TinyServer(served or model, **fault)
    server = Server("http://tiny", transport=httpx.MockTransport(fake))
    return audit_server(server, target(model), PROMPTS, PROMPTS, settings, lambda stage, done, total: None)


def test_a_faithful_server_is_lossless() -> None:
    report = audit()
    assert report.verdict == "lossless" and report.exit_status == 0, report.reasons
    assert report.reasons == [] and report.cut_share == pytest.approx(2 / 3)
    assert report.noise.mean_tv < 1e-6 and all(not prompt.greedy.differences for prompt in report.prompts)
    assert all(prompt.samples == 1500 and prompt.smallest_bias <= 0.08 for prompt in report.prompts)
    assert len(report.pooled) == 2 and all(len(prompt.tests) == 3 for prompt in report.prompts)


def towards_likely(law: torch.Tensor) -> torch.Tensor:
    """Moves 0.12 of the mass to the most probable token, as a leak does that accepts what survives."""
    best = law.argmax(-1, keepdim=True)
    return (law * 0.88).scatter_add(1, best, torch.full_like(best, 0.12, dtype=law.dtype))


def test_a_biased_server_is_found() -> None:
    report = audit(twist=towards_likely)
    assert report.verdict == "biased" and report.exit_status == 1
    assert report.reasons and all("p = " in reason and "after Holm's correction" in reason for reason in report.reasons)
    # Every sample is pushed to a token of its own: token classes average that out, ranks and surprisal do not.
    assert {reason.split()[0] for reason in report.reasons} >= {"ranks", "surprisal"}


def towards_one_token(law: torch.Tensor) -> torch.Tensor:
    """Moves 0.12 of the mass to token 3, whatever the prefix."""
    moved = law * 0.88
    moved[:, 3] += 0.12
    return moved


def test_a_bias_to_one_token_is_found_and_measured() -> None:
    report = audit(twist=towards_one_token)
    assert report.verdict == "biased" and any("tokens test on p:1" in reason for reason in report.reasons)
    assert max(prompt.observed_tv for prompt in report.prompts) > 0.07
    assert max(prompt.chance_tv for prompt in report.prompts) < 0.04


def test_greedy_faults_condemn() -> None:
    report = audit(greedy_fault=True)
    assert report.verdict == "biased" and "2 greedy tokens are not the target's" in report.reasons[-1]


def test_whole_blocks_are_inconclusive() -> None:
    report = audit(lengths=(GAMMA, GAMMA, 1, GAMMA, GAMMA))
    assert report.verdict == "inconclusive" and report.exit_status == 3
    assert "a decision cut 20% of the audited blocks" in report.reasons[0]


def test_no_histogram_means_nothing_was_cut() -> None:
    report = audit(histogram=False)
    assert report.verdict == "inconclusive" and report.cut_share == 0.0


def test_too_few_samples_are_inconclusive() -> None:
    report = audit(AuditSettings(**{**SETTINGS.__dict__, "samples": 150}))
    assert report.verdict == "inconclusive" and "too few samples" in report.reasons[0]


def test_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="does not hold the model that is served"):
        audit(served=tiny_model(seed=1))


def test_a_prompt_outside_the_vocabulary_is_refused() -> None:
    model = tiny_model()
    server = Server("http://tiny", transport=httpx.MockTransport(TinyServer(model)))
    with pytest.raises(InputError, match="token 48 is not among the target's 0..47"):
        audit_server(server, target(model), [Prompt("p:1", (48,))], [], SETTINGS, lambda *_: None)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_laws_with_the_prompts_cache_equal_plain_forwards(first: int) -> None:
    model, rng = tiny_model(), np.random.default_rng(0)
    rows = rng.integers(0, VOCAB, (40, 5))
    rows[20:] = rows[:20]
    (where, laws), *rest = target(model).laws((4, 5, 6), rows, first)
    assert not rest and where == slice(0, 40) and laws.shape == (40, 5 - first, VOCAB)
    for row, law in zip(rows, laws, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[4, 5, 6, *row[:-1]]])).logits[0, 2 + first :]
        assert np.allclose(law, logits.double().softmax(-1).numpy(), atol=1e-5)
    assert np.allclose(laws.sum(-1), 1.0)


def test_laws_of_single_tokens() -> None:
    ((_, laws),) = target(tiny_model()).laws((4, 5), np.array([[1], [2]]), 0)
    assert laws.shape == (2, 1, VOCAB) and np.allclose(laws[0], laws[1])


def test_greedy_differences_are_classified() -> None:
    logits = np.array([[3.0, 1.0, 0.0], [2.0, 2.0 - 5e-4, 0.0], [0.0, 0.0, 4.0]])
    compared = greedy.compare([0, 1, 1], logits, 1e-3)
    assert [(d.position, d.tie) for d in compared.differences] == [(1, True), (2, False)]
    assert [d.gap for d in compared.real] == [4.0] and compared.tokens == 3


def test_noise_is_measured_on_the_servers_top_tokens() -> None:
    law = np.array([[0.5, 0.3, 0.2]])
    reply = Reply([0], {}, 1, [{0: float(np.log(0.6)), 1: float(np.log(0.3))}])
    floor = noise_floor([(reply, law)])
    assert floor.mean_tv == pytest.approx(0.1) and floor.max_logprob == pytest.approx(np.log(1.2))
