"""Every kernel compiles for a Hopper GPU. That needs no GPU, and the interpreter alone would not notice a type
error."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels import admission, philox, survival  # noqa: E402
from dspark_kernels.markov import sample_markov_block  # noqa: E402
from dspark_kernels.markov_bounds import markov_bounds  # noqa: E402
from dspark_kernels.markov_heads import MarkovHead  # noqa: E402
from dspark_kernels.rejection import verify  # noqa: E402
from dspark_kernels.rejection_reference import DraftLaw, Sampling  # noqa: E402
from dspark_kernels.rejection_statistics import draft_normaliser  # noqa: E402
from kernel_compile import compile_launch, recorded_launches  # noqa: E402


def launch_philox(ones):
    request = torch.tensor([1, 2])
    for step in (torch.tensor([1]), torch.tensor([1, 2])):
        philox.draw_words(1 if ones else 1 << 40, request, step, 1, philox.DRAFT, 1 if ones else 8)


def launch_survival(ones):
    requests, gamma, width, rank = (1, 1, 1, 1) if ones else (2, 3, 8, 4)
    hidden, w1 = torch.randn(requests, gamma, width).bfloat16(), torch.randn(9, rank).bfloat16()
    weight, temperatures = torch.randn(1, width + rank), torch.ones(gamma)
    anchor, draft = torch.zeros(requests, dtype=torch.int64), torch.zeros(requests, gamma, dtype=torch.int64)
    survival.confidence_survival(hidden, anchor, draft, weight, torch.zeros(1), temperatures, w1)
    survival.confidence_survival(hidden, anchor, draft, weight[:, :width].contiguous(), None, temperatures[0])
    survival.survival_units(torch.rand(requests, gamma))


def launch_admission(ones):
    requests, gamma = (1, 1) if ones else (2, 3)
    count = requests * gamma
    for dtype in (torch.int32, torch.int64):
        units = torch.ones(requests, gamma, dtype=dtype)
        inverse, tops = torch.ones(count + 1, dtype=torch.float64), torch.arange(count)
        admission.admit(units, "budget", budget=2)
        admission.admit(units, "early-stop", inverse=inverse, fill_to=torch.arange(count + 1), floor=int(ones))
        admission.admit(units, "early-stop", inverse=inverse[:1])
        admission.admit(units, "lookahead", inverse=inverse, tops=tops, cap=1)


def launch_markov(ones):
    requests, gamma, vocab, rank = (1, 1, 20, 1) if ones else (2, 2, 300, 16)
    head = MarkovHead("vanilla", torch.randn(vocab, rank).bfloat16(), torch.randn(vocab, rank).bfloat16())
    base, anchor = torch.randn(requests, gamma, vocab).bfloat16(), torch.zeros(requests, dtype=torch.int64)
    arguments = (head, base, anchor, torch.ones(requests))
    options = dict(seed=1 if ones else 1 << 40, request=torch.arange(requests), step=torch.tensor([1]))
    for table in (True, False):
        sample_markov_block(*arguments, **options, bounds=markov_bounds(head, table=table), count_tiles=table)
    sample_markov_block(*arguments, **options, keep="logits")
    if not ones:
        gate = torch.randn(rank, 4 + rank).bfloat16(), torch.randn(rank).bfloat16()
        gated = MarkovHead("gated", head.w1, head.w2, *gate)
        hidden = torch.randn(requests, gamma, 4).bfloat16()
        sample_markov_block(
            gated, *arguments[1:], **options, hidden=hidden, bounds=markov_bounds(gated), keep="nothing"
        )


def launch_rejection(ones):
    requests, gamma, vocab = (1, 1, 2) if ones else (2, 2, 20)
    target, step_logits = torch.randn(6, vocab).bfloat16(), torch.randn(requests, gamma, vocab).bfloat16()
    hot, lengths = torch.ones(requests), torch.ones(requests, dtype=torch.int32)
    law = DraftLaw(step_logits, torch.zeros(requests, gamma), hot)
    filters = dict(top_k=torch.ones(requests, dtype=torch.int32), top_p=0.9 * hot, min_p=0.1 * hot)
    for sampling, given in ((Sampling(hot), law), (Sampling(hot, **filters), None)):
        verify(
            target, 2 * torch.arange(requests), lengths, torch.zeros(requests, gamma, dtype=torch.int64),
            sampling, given, seed=1 if ones else 1 << 40, request=torch.arange(requests), step=torch.tensor([1]),
        )  # fmt: skip
    draft_normaliser(step_logits, hot, lengths)


@pytest.mark.slow
@pytest.mark.parametrize("launch", [launch_philox, launch_survival, launch_admission, launch_markov, launch_rejection])
@pytest.mark.parametrize("ones", [False, True], ids=["general", "every size one"])
def test_kernels_compile_for_hopper(launch, ones):
    with recorded_launches() as launches:
        launch(ones)
    assert launches
    for each in launches:
        assert compile_launch(each).asm["cubin"], each[0].__name__
