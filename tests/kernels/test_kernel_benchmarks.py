"""The benchmarks: they refuse what would be no measurement, their baseline computes the same thing, their profiles
load."""

import importlib
import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")

from dspark_kernels.choose import Pair, choose, choose_over, medians, seconds_per_call  # noqa: E402
from dspark_kernels.interpreter import interpreted  # noqa: E402
from dspark_kernels.markov import sample_markov_block  # noqa: E402
from dspark_kernels.markov_heads import MarkovHead  # noqa: E402

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@without_gpu
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("kernels", [], "no CUDA device"),
        ("kernels", ["--device", "cpu"], "--small"),
        ("kernels", ["--device", "cpu", "--small", "--out", "never.json"], "no results"),
        ("kernels", ["--device", "cpu", "--small", "--repeats", "0"], "--repeats 0"),
        ("record_gpu_profile", ["--output", "never.json"], "no CUDA device"),
        ("record_gpu_profile", ["--output", "never.json", "--device", "cpu"], "--small"),
    ],
)
def test_what_would_be_no_measurement_is_refused(benchmark, monkeypatch, capsys, name, arguments, message):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    assert benchmark(name).main() == 2
    assert message in capsys.readouterr().err
    assert not Path("never.json").exists()


@pytest.mark.slow
@without_gpu
def test_every_operation_runs_in_the_interpreter(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernels", "--device", "cpu", "--small"])
    assert benchmark("kernels").main() == 0
    out = capsys.readouterr().out
    assert "INTERPRETER" in out and "everything ran" in out
    assert "GB/s" in out and "of SGLang's sequence" not in out


@pytest.fixture
def sglang(benchmark):
    """SGLang's own kernels, and what runs them here."""
    pytest.importorskip("sglang", reason="the baseline is SGLang's own kernel files (extra `serve`)")
    files = benchmark("sglang_files").load(None)
    with interpreted(files.reject_sampling):
        yield benchmark("upstream_sequence").UpstreamSequence(files)


def test_the_baseline_drafts_the_same_greedy_tokens(sglang):
    torch.manual_seed(0)
    w1, w2 = torch.randn(300, 16).bfloat16(), torch.randn(300, 16).bfloat16()
    base, anchor, zeros = torch.randn(3, 2, 300).bfloat16(), torch.tensor([1, 2, 3]), torch.zeros(3)
    counters = dict(seed=1, request=torch.arange(3), step=torch.tensor([0]))
    theirs, logits = sglang.markov_block(w1, w2, base, anchor, zeros, counters["step"], keep=True)
    ours = sample_markov_block(MarkovHead("vanilla", w1, w2), base, anchor, zeros, **counters, keep="logits")
    assert torch.equal(theirs, ours.tokens)
    torch.testing.assert_close(logits, ours.step_logits, rtol=1e-2, atol=1e-2)


def test_the_baseline_accepts_equal_laws_and_refuses_impossible_tokens(sglang):
    torch.manual_seed(1)
    lengths = torch.tensor([2, 0, 1], dtype=torch.int32)
    start = torch.cumsum(lengths + 1, 0) - (lengths + 1)
    packed, ones = torch.randn(6, 40), torch.ones(3)
    draft = torch.randint(0, 40, (3, 2))
    rows = start[:, None] + torch.minimum(torch.arange(2)[None, :], lengths[:, None])
    accepted = sglang.accept(packed, lengths, draft, ones, packed[rows].contiguous())
    assert (accepted >= lengths).all(), "within its verified length a draft of the target's law is accepted"
    packed[torch.arange(6)[:, None], draft[0][None, :]] = float("-inf")
    same = draft[:1].expand(3, 2).contiguous()
    refused = sglang.accept(packed, lengths, same, ones, torch.zeros(3, 2, 40))
    assert refused[lengths > 0].tolist() == [0, 0]


def test_paged_attention_of_the_recorded_step(benchmark):
    step = benchmark("qwen_step")
    torch.manual_seed(2)
    batch = step.Batch.make([3, 1], 70, torch.device("cpu"))
    query, cache = torch.randn(4, 4, 16), torch.randn(2, 144, 2, 16)
    for causal in (True, False):
        with interpreted(step):
            got = step.attend(query, cache[0], cache[1], batch, causal)
        for request, (first, last, kv) in enumerate([(0, 3, slice(0, 73)), (3, 4, slice(73, 144))]):
            keys, values = (each[batch.kv_indices[kv].long()].transpose(0, 1).repeat_interleave(2, 0) for each in cache)
            length, seen = last - first, keys.shape[1]
            mask = torch.ones(length, seen, dtype=torch.bool).tril(seen - length) if causal else None
            want = torch.nn.functional.scaled_dot_product_attention(
                query[first:last].transpose(0, 1), keys, values, mask
            )
            torch.testing.assert_close(
                got[first:last], want.transpose(0, 1), rtol=1e-4, atol=1e-5, msg=f"request {request}"
            )


def test_the_fit_finds_base_and_slope(benchmark):
    recorder = benchmark("record_gpu_profile")
    points = [
        recorder.Point(size, tokens, 1e-3 * size + 2e-9 * tokens, 0.0)
        for size in (8, 16)
        for tokens in (512, 4096, 32768)
    ]
    base, slope, error = recorder.fit(points)
    assert base == pytest.approx({8: 8e-3, 16: 16e-3})
    assert slope == pytest.approx(2e-9)
    assert error < 1e-9


def test_a_recorded_profile_loads(benchmark, tmp_path):
    from sglang_dspark.cost import load_profile

    recorder = benchmark("record_gpu_profile")
    terms = {
        "context_token_s": 1e-9,
        "draft_context_token_s": 1e-10,
        "prefill_base_s": 0.01,
        "prefill_token_s": 1e-5,
        "copy_s": 1e-5,
    }
    profile = recorder.as_profile(
        {1: 1e-3, 2: 1.1e-3}, {8: 8e-3, 16: 9e-3}, [(16, 12e-3)], 2, terms, {"sweep": "off-diagonal"}
    )
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(profile))
    prices = load_profile(str(path)).prices(2, 7, 0.0)
    assert prices.seconds[0] == pytest.approx(1.1e-3 + 8e-3)
    assert prices.seconds[-1] == pytest.approx(1.1e-3 + 9e-3)


def test_choosing_says_why():
    cpu, calls = torch.device("cpu"), []
    chosen = choose("rejection", lambda: calls.append(1), lambda: calls.append(2), cpu)
    assert (chosen.kernels, calls) == ("upstream", [])
    assert "no CUDA device" in str(chosen)
    assert choose("rejection", calls.clear, calls.clear, cpu, "ours").kernels == "ours"
    with pytest.raises(ValueError, match="kernels='fast'"):
        choose("rejection", calls.clear, calls.clear, cpu, "fast")
    assert len(seconds_per_call(calls.clear, cpu, repeats=3)) == 3


def test_choosing_over_pairs_adds_them_up_and_says_each():
    """The timer is a stand-in: we are slower at one row and faster at many, which weigh more."""
    times = {"1 rows": (9e-6, 5e-6, True), "64 rows": (50e-6, 80e-6, False)}
    pairs = [Pair(what, lambda: None, lambda: None) for what in times]
    chosen = choose_over("rejection", pairs, torch.device("cpu"), lambda pair, device: times[pair.what])
    assert chosen.kernels == "ours" and chosen.ours_s == pytest.approx(59e-6)
    assert "1 rows 9 us against upstream's 5 us, 64 rows 50 us against upstream's 80 us (launched)" in chosen.reason
    assert choose_over("rejection", pairs[:1], torch.device("cpu"), lambda p, d: times[p.what]).kernels == "upstream"
    with pytest.raises(ValueError, match="nothing to measure"):
        choose_over("rejection", [], torch.device("cpu"))


@pytest.mark.gpu
def test_a_call_of_a_graph_of_ten_takes_what_one_call_takes():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    side = torch.randn(4096, 4096, device=device)
    one, ten = (min(seconds_per_call(lambda: side @ side, device, calls=calls)) for calls in (1, 10))
    assert ten == pytest.approx(one, rel=0.2)


@pytest.mark.gpu
def test_what_cannot_be_captured_is_launched_and_says_so():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    side = torch.randn(64, 64, device=device)
    ours, upstream, captured = medians(Pair("64", lambda: side @ side, lambda: (side @ side).sum().item()), device)
    assert not captured and ours > 0 and upstream > 0
    assert medians(Pair("64", lambda: side @ side, lambda: side + side), device)[2], "the device captures afterwards"


@pytest.mark.gpu
def test_choosing_keeps_the_faster():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    small, large = (torch.randn(side, side, device=device) for side in (64, 4096))
    chosen = choose("product", lambda: small @ small, lambda: large @ large, device)
    assert chosen.kernels == "ours" and chosen.ours_s < chosen.upstream_s
