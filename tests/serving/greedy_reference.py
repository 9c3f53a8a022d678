"""The plain target's own greedy continuation (transformers, float32), and what a difference to it means."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

TIE = 1e-3
"""Logit gap below which two tokens count as numerically tied between two correct implementations."""


class GreedyReference:
    """Greedy text of a target folder."""

    def __init__(self, target: Path) -> None:
        self._target = target

    @cached_property
    def model(self) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        return AutoModelForCausalLM.from_pretrained(self._target, dtype=torch.float32).eval()

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._target)

    def tokens(self, text: str) -> list[int]:
        """Prompt tokens, as given to the server."""
        return self.tokenizer(text)["input_ids"]

    @torch.inference_mode()
    def judge(self, prompt: list[int], output: list[int]) -> str:
        """`equal`, `tie` (only numerically tied tokens differ) or `different`; checks every token on its own prefix."""
        logits = self.model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        best = logits.max(-1)
        gaps = best.values - logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        if bool((best.indices == torch.tensor(output)).all()):
            return "equal"
        return "tie" if float(gaps.max()) < TIE else "different"
