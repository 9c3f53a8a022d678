"""DP attention on two CUDA devices with a dense draft: the same answers as on one, and the refusal of graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `serve`")
pytest.importorskip("sglang", reason="needs the extra `serve`")

from live_server import LiveServer  # noqa: E402

from sglang_dspark.records import RecordSet  # noqa: E402
from sglang_dspark.records.replay import replay  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
RANKS = ("--tp", "2", "--dp", "2", "--enable-dp-attention", "--enable-dp-lm-head")
POLICY = ("--speculative-dspark-policy", "fixed:k=3")


def test_two_ranks_on_two_devices(demo_pair: Path, prompts, reference, tmp_path: Path) -> None:
    flags = (*POLICY, "--speculative-dspark-record", str(tmp_path / "records"))
    eager = ("--cuda-graph-backend-decode", "disabled", "--dtype", "float32")
    inputs = [reference.tokens(prompt)[:40] for prompt in prompts[:16]]
    with LiveServer(demo_pair, tmp_path / "log", *flags, *RANKS, *eager) as server:
        for policy in ("fixed:k=3", "fixed:k=7", "threshold:t=0.5"):
            server.switch(policy)
            answers = server.generate_all(inputs, 16, tokens=48, ignore_eos=True)
            verdicts = [reference.judge(ids, one["output_ids"]) for ids, one in zip(inputs, answers, strict=True)]
            assert "different" not in verdicts, (policy, verdicts)
    result = replay(RecordSet(tmp_path / "records"))
    assert result.equal > 50 and result.different == 0, result.first


def test_a_dense_draft_in_graphs_is_refused_in_one_sentence(demo_pair: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="left with 2"), LiveServer(demo_pair, tmp_path / "log", *POLICY, *RANKS):
        pass
    assert "--cuda-graph-backend-decode disabled" in (tmp_path / "log").read_text()
