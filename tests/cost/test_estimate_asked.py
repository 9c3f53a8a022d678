"""The text that asks for an estimate: what it means, and what is refused. Needs no library."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import load_profile
from sglang_dspark.cost.estimate.asked import Anchor, Asked, is_estimate
from sglang_dspark.errors import InputError

WORDS = st.text("abcXYZ019._-", min_size=1, max_size=12).filter(lambda text: text not in (".", ".."))


@given(
    gpu=WORDS,
    model=st.lists(WORDS, min_size=1, max_size=3).map("/".join),
    ranks=st.integers(0, 6).flatmap(lambda p: st.tuples(st.just(2**p), st.sampled_from([2**i for i in range(p + 1)]))),
    gemm=st.none() | WORDS,
    draft=st.none() | WORDS,
    gamma=st.none() | st.integers(1, 64),
    anchors=st.dictionaries(st.integers(1, 4096), st.integers(1, 10**6).map(lambda us: us / 1e5), max_size=3),
)
def test_the_text_of_what_was_asked_asks_for_the_same(
    gpu: str,
    model: str,
    ranks: tuple[int, int],
    gemm: str | None,
    draft: str | None,
    gamma: int | None,
    anchors: dict[int, float],
) -> None:
    measured = tuple(Anchor(count, seconds) for count, seconds in anchors.items())
    asked = Asked(gpu, model, *ranks, gemm=gemm, draft=draft, gamma=gamma, anchors=measured)
    assert is_estimate(asked.text)
    again = Asked.of(asked.text)
    assert [one.requests for one in again.anchors] == sorted(anchors)
    assert all(one.seconds == pytest.approx(anchors[one.requests], rel=1e-5) for one in again.anchors)
    assert (again.gpu, again.model, again.tp, again.ep) == (gpu, model, *ranks)
    assert (again.gemm, again.draft, again.gamma) == (gemm, draft, gamma)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("estimate:", "expected estimate:GPU/MODEL"),
        ("estimate:h100_sxm", "expected estimate:GPU/MODEL"),
        ("estimate:h100_sxm/", "expected estimate:GPU/MODEL"),
        ("estimate:/Qwen3-8B", "expected estimate:GPU/MODEL"),
        ("estimate:h100_sxm/Qwen3-8B,tp", "'tp' is refused, expected tp, ep, gemm"),
        ("estimate:h100_sxm/Qwen3-8B,", "'' is refused"),
        ("estimate:h100_sxm/Qwen3-8B,precision=fp8", "'precision=fp8' is refused"),
        ("estimate:h100_sxm/Qwen3-8B,tp=two", "tp='two' is refused, expected an integer"),
        ("estimate:h100_sxm/Qwen3-8B,tp=0", "expected 1..64 ranks"),
        ("estimate:h100_sxm/Qwen3-8B,tp=4,ep=3", "an ep that divides tp"),
        ("estimate:h100_sxm/Qwen3-8B,tp=2,tp=4", "'tp' is given twice"),
        ("estimate:h100_sxm/Qwen3-8B,gamma=65", "gamma=65 is refused, expected 1..64"),
        ("estimate:h100_sxm/Qwen3-8B,data=guess", "data=guess is refused, expected silicon or hybrid"),
        ("estimate:h100_sxm/Qwen3-8B,anchor=4", "anchor '4' is refused, expected REQUESTS:MILLISECONDS"),
        ("estimate:h100_sxm/Qwen3-8B,anchor=0:7", "1..4096 requests"),
        ("estimate:h100_sxm/Qwen3-8B,anchor=4:nan", "0.01..10000 ms"),
        ("estimate:h100_sxm/Qwen3-8B,anchor=4:7,anchor=4:8", "two at one batch size"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Asked.of(text)


def test_a_missing_or_other_library_is_one_sentence_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata as metadata

    from sglang_dspark.cost.estimate import library

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    library.gpu_names.cache_clear()
    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(InputError, match=r"not installed: pip install \"sglang-dspark\[estimate\]\".*shipped as files"):
        load_profile("estimate:h100_sxm/Qwen3-8B,gamma=63")
    monkeypatch.setattr(metadata, "version", lambda name: "0.13.0")
    with pytest.raises(InputError, match="aiconfigurator-core 0.13.0 is installed"):
        load_profile("estimate:h100_sxm/Qwen3-8B,gamma=63")


def test_one_module_alone_imports_the_library() -> None:
    from pathlib import Path

    root = Path(sys.modules["sglang_dspark"].__file__ or "").parent.parent
    files = [file for room in ("sglang_dspark", "simulator", "kernels") for file in (root / room).rglob("*.py")]
    found = {file.name for file in files if "aiconfigurator_core" in file.read_text()}
    assert found == {"library.py"}
