"""Every kernel compiles: for Ampere, Hopper and Blackwell at served sizes, for Hopper in every variant and at size 1.

That needs no GPU, and the interpreter alone would not notice a type error, a pass of the compiler that fails, or more
shared memory than a block may have.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels import admission, philox, survival  # noqa: E402
from dspark_kernels.markov import sample_markov_block  # noqa: E402
from dspark_kernels.markov_bounds import MarkovBounds  # noqa: E402
from dspark_kernels.markov_heads import MarkovHead  # noqa: E402
from dspark_kernels.rejection import verify  # noqa: E402
from dspark_kernels.rejection_reference import DraftLaw, Sampling  # noqa: E402
from dspark_kernels.rejection_statistics import draft_normaliser  # noqa: E402
from kernel_compile import SHARED_BYTES, compiled_ahead, kernels_of  # noqa: E402

# Requests, gamma, vocabulary, Markov rank, hidden size: Qwen3-8B's, and Triton compiles every size of 1 as a constant.
SERVED, ONES = (8, 7, 151_936, 256, 4096), (1, 1, 1, 1, 1)


def zeros(*shape, dtype=torch.int64):
    return torch.zeros(shape, dtype=dtype)


def floats(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype)


def compile_philox(requests, gamma, vocab, rank, width):
    philox.draw_words(1 if vocab == 1 else 1 << 40, zeros(requests), zeros(1), 1, philox.DRAFT, vocab)


def compile_survival(requests, gamma, vocab, rank, width):
    hidden, w1 = (floats(*shape, dtype=torch.bfloat16) for shape in ((requests, gamma, width), (vocab, rank)))
    block = (hidden, zeros(requests), zeros(requests, gamma))
    survival.confidence_survival(*block, floats(1, width + rank), floats(1), floats(gamma), w1)
    survival.confidence_survival(*block, floats(width), None, floats())
    survival.survival_units(floats(requests, gamma))


def compile_admission(requests, gamma, vocab, rank, width):
    count = requests * gamma
    units, counts = zeros(requests, gamma, dtype=torch.int32), zeros(count + 1)
    inverse = floats(count + 1, dtype=torch.float64)
    admission.admit(units, "early-stop", inverse=inverse, fill_to=counts)
    admission.admit(units, "budget", budget=2)
    admission.admit(units, "lookahead", inverse=inverse, tops=zeros(1))
    # Between a floor and a cap of 1 nothing is decided: Triton 3.6 failed to compile the walk over nothing.
    admission.admit(units, "early-stop", inverse=inverse, floor=1)
    admission.admit(units, "early-stop", inverse=inverse, floor=1, cap=1)


def compile_markov(requests, gamma, vocab, rank, width):
    head = MarkovHead("vanilla", *(floats(vocab, rank, dtype=torch.bfloat16) for _ in range(2)))
    base = floats(requests, gamma, vocab, dtype=torch.bfloat16)
    arguments = (head, base, zeros(requests), floats(requests))
    options = dict(seed=1 if vocab == 1 else 1 << 40, request=zeros(requests), step=zeros(1))
    blocks = -(-vocab // 256)
    general = (256, floats(blocks, rank), floats(blocks), floats(blocks))
    table = floats(vocab, blocks, dtype=torch.bfloat16)
    for bounds, keep in ((MarkovBounds(*general, table), "normaliser"), (MarkovBounds(*general), "nothing")):
        sample_markov_block(*arguments, **options, bounds=bounds, keep=keep)
    sample_markov_block(*arguments, **options, keep="logits", count_tiles=True)


def compile_rejection(requests, gamma, vocab, rank, width):
    target, drafted = (
        floats(*shape, dtype=torch.bfloat16) for shape in ((requests * (gamma + 1), vocab), (requests, gamma, vocab))
    )
    hot, lengths = floats(requests), zeros(requests, dtype=torch.int32)
    filtered = Sampling(hot, zeros(requests, dtype=torch.int32), hot, hot)
    for sampling, law in ((Sampling(hot), DraftLaw(drafted, floats(requests, gamma), hot)), (filtered, None)):
        verify(
            target,
            zeros(requests),
            lengths,
            zeros(requests, gamma),
            sampling,
            law,
            seed=1 if vocab == 1 else 1 << 40,
            request=zeros(requests),
            step=zeros(1),
        )
    draft_normaliser(drafted, hot, lengths)


TABLE = {
    compile_philox: {"_words_kernel"},
    compile_survival: {"_survival_kernel", "_confidence_kernel"},
    compile_admission: {"_rank_kernel", "_admit_kernel"},
    compile_markov: {"prepare_kernel", "probe_kernel", "advance_kernel", "tile_kernel", "_normaliser_kernel"},
    compile_rejection: {
        "_statistics_kernel",
        "_threshold_kernel",
        "accept_kernel",
        "recover_kernel",
        "pick_kernel",
    },
}
"""What compiles which kernels."""


@pytest.mark.parametrize(
    ("sizes", "capability", "every"),
    [
        pytest.param(SERVED, 90, True, id="served sm90"),
        pytest.param(ONES, 90, True, id="ones sm90"),
        pytest.param(SERVED, 80, False, id="served sm80"),
        pytest.param(SERVED, 100, False, id="served sm100"),
        *(
            pytest.param(sizes, capability, True, id=f"{name} sm{capability}, every variant", marks=pytest.mark.slow)
            for capability in (80, 100)
            for name, sizes in (("served", SERVED), ("ones", ONES))
        ),
    ],
)
@pytest.mark.parametrize("launches", TABLE, ids=lambda function: function.__name__.removeprefix("compile_"))
def test_kernels_compile(launches, sizes, capability, every, tmp_path):
    with compiled_ahead(capability, tmp_path, every=every) as found:
        launches(*sizes)
    assert set(found) == TABLE[launches]
    for name, kernels in found.items():
        for kernel in kernels:
            assert kernel.asm["cubin"], name
            assert kernel.metadata.shared <= SHARED_BYTES[capability], name


def test_every_kernel_is_in_the_table():
    assert set(kernels_of()) == set().union(*TABLE.values())


NEW = """
@triton.jit
def helper(x):
    return x

@triton.jit(do_not_specialize=["x"])
def new_kernel(x):
    helper(x)

def launch(x):
    new_kernel[(1,)](x)
"""


def test_a_kernel_that_is_not_in_the_table_is_seen(tmp_path):
    (tmp_path / "new.py").write_text(NEW)
    assert set(kernels_of(tmp_path)) == {"new_kernel"}


def test_no_kernel_takes_more_arguments_than_one_can_follow():
    long = {name: len(kernel.args.args) for name, kernel in kernels_of().items() if len(kernel.args.args) > 12}
    assert not long
