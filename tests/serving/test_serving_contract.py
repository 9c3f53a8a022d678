"""What we override in SGLang is as it was; a difference is named."""

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from sglang_dspark.serving.base import contract  # noqa: E402


def test_sglang_is_the_one_that_was_overridden() -> None:
    calls = contract.WORKER_CALLS | contract.HOOKED_CALLS | contract.CPU_CALLS
    assert contract.moved(calls, contract.CONSTANTS) == []


def test_a_difference_is_named() -> None:
    target = "sglang.srt.speculative.ragged_verify.round_up_grid"
    assert contract.moved({target: "total"}) == [f"{target} takes grid as well, which is not expected"]
    assert contract.moved({target: "total, size"}) == [f"{target} does not take size"]
    assert contract.moved({target + "s": "total"}) == [f"{target}s is gone"]
    assert "expected 3" in contract.moved({}, {"sglang.srt.managers.overlap_utils.CONFIDENCE_RELAY_RING_LAG": 3})[0]


def test_ragged_backends_exist() -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    from sglang_dspark.serving.plugin.taking_part import RAGGED_BACKENDS

    assert set(RAGGED_BACKENDS) <= set(ATTENTION_BACKENDS)
