"""A draft whose confidence head is replaced by one that likes small digits, so that a policy which leaks leaks a lot.

Confidence then depends on the token before alone: near 1 after 0, 1 and 2 and in a time stamp, near 0 after the other
digits, about a half after most other tokens. No confidence, however wrong, may bias a lossless policy.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WANTED = dict.fromkeys("T:012", 6.0) | dict.fromkeys("3456789", -6.0)
"""Confidence logits after these tokens; about 0 after others."""
IMPORTANCE = 100.0


def write_partial_draft(draft: Path, folder: Path, tokenizer: Any) -> Path:
    """Copy `draft` to `folder` with the new head; returns `folder`."""
    shutil.copytree(draft, folder)
    weights = load_file(draft / "model.safetensors")
    embedding = weights["markov_head.markov_w1.weight"].double()
    wanted = torch.zeros(len(embedding), dtype=torch.double)
    importance = torch.ones(len(embedding), dtype=torch.double)
    for text, logit in WANTED.items():
        (token,) = tokenizer.encode(text)
        wanted[token], importance[token] = logit, IMPORTANCE
    # Weighted ridge regression of the wanted logits on the Markov embedding, with a bias.
    columns = torch.cat([embedding, torch.ones(len(embedding), 1, dtype=torch.double)], 1)
    weighted = columns.T * importance
    solution = torch.linalg.solve(weighted @ columns + 1e-6 * torch.eye(columns.shape[1]).double(), weighted @ wanted)
    head = weights["confidence_head.proj.weight"]
    head.zero_()
    head[0, -embedding.shape[1] :] = solution[:-1].float()
    weights["confidence_head.proj.bias"][:] = solution[-1].float()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
