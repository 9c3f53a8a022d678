"""Saved Markov and confidence heads mean the same to SGLang's own modules as to ours."""

import importlib.util
import os

import pytest

torch = pytest.importorskip("torch", reason="the demo pair needs torch (extra `serve`)")
if importlib.util.find_spec("sglang") is None:  # importing it takes long, and not every run needs it
    pytest.skip("compares with SGLang's modules (extra `serve`)", allow_module_level=True)

from sglang_dspark.demo.draft import HEADS, DSparkDraft  # noqa: E402
from sglang_dspark.demo.pair import draft_config, save_draft, target_config  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_heads_load_into_sglang_and_agree(head: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.setitem(os.environ, "SGLANG_RAGGED_VERIFY_MODE", "compact")  # static mode builds no confidence head
    from sglang.srt.models import dspark as theirs

    config = draft_config(target_config(40, 32, 3), gamma=4, head=head, layers=1, rank=8, anchors=4)
    draft = DSparkDraft(config)
    draft.initialize(torch.Generator().manual_seed(0))
    save_draft(draft, tmp_path / "draft")
    weights = load_file(tmp_path / "draft" / "model.safetensors")
    markov, confidence = theirs.build_markov_head(config), theirs.build_confidence_head(config)
    for module, prefix in ((markov, "markov_head."), (confidence, "confidence_head.")):
        part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        module.load_state_dict(part, strict=True)

    hidden = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(1))
    previous = torch.randint(0, 40, (3, 4), generator=torch.Generator().manual_seed(2))
    state, biases = markov.init_state(hidden), []
    for k in range(4):
        bias, state = markov.step_bias(previous[:, k], hidden_states=hidden[:, k], state=state)
        biases.append(bias)
    with torch.no_grad():
        ours = draft.forced_logits(hidden, previous) - draft.lm_head(hidden)
        torch.testing.assert_close(ours, torch.stack(biases, 1), atol=1e-5, rtol=1e-4)
        drafted = torch.cat([previous[:, 1:], previous[:, :1]], 1)
        _, raw = confidence.predict(hidden, anchor_tokens=previous[:, 0], draft_tokens=drafted, markov_head=markov)
        torch.testing.assert_close(draft.confidence_logits(hidden, previous), raw, atol=1e-5, rtol=1e-4)
