"""The saved form of the demo pair: configs, files, loading, and a hash of the weights.

A pair's folder holds `target/` (a Hugging Face Qwen3 model with its tokenizer), `draft/` (DeepSpec's DSpark export,
which SGLang loads as a draft model), `prompts/*.jsonl` and `demo.json`.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sglang_dspark.demo.draft import DSparkDraft
from sglang_dspark.demo.tokenizer import EOS_ID, MASK_ID
from sglang_dspark.errors import InputError

MAX_POSITIONS = 2048
HEAD_DIM = 64  # the smallest that FlashInfer's attention kernels take


@dataclass(frozen=True)
class Pair:
    """A loaded pair, in float32 and evaluation mode."""

    tokenizer: PreTrainedTokenizerFast
    target: Qwen3ForCausalLM
    draft: DSparkDraft


def target_config(vocab_size: int, hidden: int, layers: int) -> Qwen3Config:
    """Config of the target; the initializer range suits its small width (Qwen3's own 0.02 learns far slower here)."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2 * math.ceil(hidden / (2 * HEAD_DIM)),
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        initializer_range=0.06,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=EOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
        tie_word_embeddings=False,
        dtype="float32",
    )


def draft_config(target: Qwen3Config, *, gamma: int, head: str, layers: int, rank: int, anchors: int) -> Qwen3Config:
    """The target's config with the fields of DeepSpec's DSpark export; features come from all layers but the last."""
    fields = target.to_dict() | {
        "architectures": ["Qwen3DSparkModel"],
        "num_target_layers": target.num_hidden_layers,
        "num_hidden_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "block_size": gamma,
        "mask_token_id": MASK_ID,
        "target_layer_ids": list(range(target.num_hidden_layers - 1)),
        "num_anchors": anchors,
        "enable_confidence_head": True,
        "confidence_head_with_markov": True,
        "markov_rank": rank,
        "markov_head_type": head,
        "tie_word_embeddings": False,
    }
    return Qwen3Config(**fields)


def save_draft(draft: DSparkDraft, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` with DeepSpec's key names."""
    folder.mkdir(parents=True)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in draft.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(draft.config.to_dict(), indent=2, sort_keys=True) + "\n")


def load_pair(folder: Path) -> Pair:
    """Load a pair's folder; InputError where it is not one."""
    target_dir, draft_dir = folder / "target", folder / "draft"
    for needed in (target_dir / "config.json", draft_dir / "config.json", draft_dir / "model.safetensors"):
        if not needed.is_file():
            raise InputError(f"{folder} is not a demo pair: {needed} is missing (make one with `dspark demo-model`)")
    draft = DSparkDraft(Qwen3Config(**json.loads((draft_dir / "config.json").read_text())))
    draft.load_state_dict(load_file(draft_dir / "model.safetensors"))
    return Pair(
        PreTrainedTokenizerFast.from_pretrained(target_dir),
        Qwen3ForCausalLM.from_pretrained(target_dir, dtype=torch.float32).eval(),
        draft.eval(),
    )


def weights_hash(folder: Path) -> str:
    """SHA-256 over every tensor (name, shape, bytes) of the target's and the draft's files, in name order."""
    digest = hashlib.sha256()
    for part in ("target", "draft"):
        tensors = load_file(folder / part / "model.safetensors")
        for name in sorted(tensors):
            digest.update(f"{part}/{name}{tuple(tensors[name].shape)}".encode())
            digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
