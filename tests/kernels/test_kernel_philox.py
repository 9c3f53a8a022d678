"""The random words against Random123's known answers, and the kernel against the reference."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels import philox  # noqa: E402

# Random123 1.14, examples/kat_vectors, philox4x32 10.
KNOWN = [
    ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, 0xFFFFFFFF_FFFFFFFF, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0_A4093822,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_reference_gives_the_known_answers(counter, key, words):
    got = philox.philox_reference(key, *(torch.tensor([c]) for c in counter))
    assert [int(word) for word in got] == words


@pytest.mark.parametrize("stream", [philox.DRAFT, philox.ACCEPT, philox.RECOVER])
@pytest.mark.parametrize("count", [1, 5, 1500])
def test_kernel_draws_the_reference_words(device, stream, count):
    request = torch.tensor([0, 3, (1 << 32) - 1], device=device)
    step = torch.tensor([1, 7, (1 << 40) + 5], device=device)
    got = philox.draw_words(987654321987654321, request, step, 6, stream, count)
    assert torch.equal(got, philox.words_reference(987654321987654321, request, step, 6, stream, count))


def test_every_part_of_the_counter_changes_the_words():
    base = dict(seed=1, request=torch.tensor([1]), step=torch.tensor([1]), position=1, stream=1, count=64)
    first = philox.draw_words(**base)
    for name, other in [
        ("seed", 2),
        ("request", torch.tensor([2])),
        ("step", torch.tensor([2])),
        ("position", 2),
        ("stream", 2),
    ]:
        assert not (philox.draw_words(**{**base, name: other}) == first).any(), name
    later = philox.draw_words(**{**base, "step": torch.tensor([1 + (1 << 32)])})
    assert not (later == first).any()


def test_gumbel_noise_has_the_gumbel_law(device):
    from scipy import stats

    words = philox.draw_words(5, torch.arange(40, device=device), torch.tensor([0], device=device), 0, 0, 500)
    noise = philox.gumbel_reference(words).flatten().cpu().numpy()
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > 1e-3


def test_gumbel_noise_is_finite_at_both_ends():
    noise = philox.gumbel_reference(torch.tensor([0, 1, 0x0FFFFFFF, 0x10000001, 0xFFFFFFFE, 0xFFFFFFFF]))
    assert torch.isfinite(noise).all()
    assert (noise.diff() <= 0).all()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"seed": -1}, ValueError),
        ({"position": 256}, ValueError),
        ({"request": torch.tensor([1.0])}, TypeError),
        ({"count": 0}, ValueError),
    ],
)
def test_bad_input_is_refused(change, error):
    base = dict(seed=1, request=torch.tensor([1]), step=torch.tensor([1]), position=1, stream=1, count=4)
    with pytest.raises(error):
        philox.draw_words(**{**base, **change})
