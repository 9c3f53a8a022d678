"""Every kernel compiles for a Hopper GPU. That needs no GPU, and the interpreter alone would not notice a type
error."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels import admission, philox, survival  # noqa: E402
from dspark_kernels.markov import sample_markov_block  # noqa: E402
from dspark_kernels.markov_heads import MarkovHead  # noqa: E402
from dspark_kernels.markov_screening import markov_bounds  # noqa: E402
from dspark_kernels.rejection import verify  # noqa: E402
from dspark_kernels.rejection_reference import DraftLaw, Sampling  # noqa: E402
from kernel_compile import compile_launch, recorded_launches  # noqa: E402


def launch_philox():
    for step in (torch.tensor([1]), torch.tensor([1, 2])):
        philox.draw_words(3, torch.tensor([1, 2]), step, 0, philox.DRAFT, 8)


def launch_survival():
    hidden, w1, weight = torch.randn(2, 3, 8).bfloat16(), torch.randn(9, 4).bfloat16(), torch.randn(1, 12)
    anchor, draft = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    survival.confidence_survival(hidden, anchor, draft, weight, torch.zeros(1), torch.ones(3), w1)
    survival.survival_units(torch.rand(2, 3))


def launch_admission():
    for dtype in (torch.int32, torch.int64):
        units = torch.ones(2, 3, dtype=dtype)
        inverse, tops = torch.ones(7, dtype=torch.float64), torch.tensor([3, 6])
        admission.admit(units, "budget", budget=2)
        admission.admit(units, "early-stop", inverse=inverse, fill_to=torch.arange(7))
        admission.admit(units, "lookahead", inverse=inverse, tops=tops)


def launch_markov():
    head = MarkovHead("vanilla", torch.randn(300, 16).bfloat16(), torch.randn(300, 16).bfloat16())
    arguments = (head, torch.randn(2, 1, 300).bfloat16(), torch.zeros(2, dtype=torch.int64), torch.ones(2))
    options = dict(seed=1 << 40, request=torch.arange(2), step=torch.tensor([1]))
    for table in (True, False):
        sample_markov_block(*arguments, **options, bounds=markov_bounds(head, table=table), count_tiles=table)
    sample_markov_block(*arguments, **options, keep="logits")


def launch_rejection():
    target, step_logits, ones = torch.randn(5, 20).bfloat16(), torch.randn(2, 2, 20).bfloat16(), torch.ones(2)
    law = DraftLaw(step_logits, torch.zeros(2, 2), ones)
    filters = dict(top_k=torch.tensor([3, 0], dtype=torch.int32), top_p=0.9 * ones, min_p=0.1 * ones)
    for sampling, given in ((Sampling(ones), law), (Sampling(ones, **filters), None)):
        verify(
            target, torch.tensor([0, 3]), torch.tensor([2, 1], dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int64),
            sampling, given, seed=1 << 40, request=torch.arange(2), step=torch.tensor([1]),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launch", [launch_philox, launch_survival, launch_admission, launch_markov, launch_rejection])
def test_kernels_compile_for_hopper(launch):
    with recorded_launches() as launches:
        launch()
    assert launches
    for each in launches:
        assert compile_launch(each).asm["cubin"], each[0].__name__
