"""Loads the target and the draft of a prediction from two folders, as a server is given them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import Qwen3Config

from sglang_dspark.audit.live.target import ExactTarget
from sglang_dspark.demo.draft import DSparkDraft
from sglang_dspark.demo.pair import Pair
from sglang_dspark.errors import InputError


def load_models(target: Path, draft: Path) -> Pair:
    """Both in float32 on the CPU. InputError where the draft is no DSpark export for a Qwen3 target (in one file)."""
    exact = ExactTarget.load(target, "cpu")
    config_file, weights = draft / "config.json", draft / "model.safetensors"
    if not config_file.is_file() or not weights.is_file():
        raise InputError(f"--draft {draft} is refused, expected a folder with config.json and model.safetensors")
    try:
        config = Qwen3Config(**json.loads(config_file.read_text()))
        model = DSparkDraft(config)
        # The draft's own embedding and head are not used: SGLang attaches the target's.
        missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"--draft {draft} is no DSpark export for Qwen3: {str(error).splitlines()[0]}") from error
    missing = [name for name in missing if name not in ("embed_tokens.weight", "lm_head.weight")]
    if missing or unexpected:
        raise InputError(f"--draft {draft} is no DSpark export for Qwen3: it lacks or adds {(missing + unexpected)[0]}")
    model.share(exact.model)
    return Pair(exact.tokenizer, exact.model, model.eval())
