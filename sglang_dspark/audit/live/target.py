"""The target's exact conditional laws, by a transformers model on the audit's own device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from sglang_dspark.audit.live.evidence import LawBatch
from sglang_dspark.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BATCH_LOGITS = 1 << 25
"""Logits [sequences, positions, V] of a forward: 32 M, 256 MiB once they are float64."""


class ExactTarget:
    """A causal language model whose probabilities at temperature 1 are the truth of an audit."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.vocab_size = int(model.config.vocab_size)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", dtype: str = "float32") -> ExactTarget:
        """From a folder with weights and tokenizer; device:

        auto, cpu, cuda, cuda:1, ... InputError where there is none.
        """
        if not (folder / "config.json").is_file():
            raise InputError(f"--target {folder} is refused, expected a folder with a model's config.json and weights")
        if dtype not in DTYPES:
            raise InputError(f"--dtype {dtype} is refused, expected one of {', '.join(DTYPES)}")
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], local_files_only=True)
            return cls(model.eval().to(chosen), AutoTokenizer.from_pretrained(folder, local_files_only=True))
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"the target in {folder} cannot be loaded on {chosen}: {first}") from error

    @torch.inference_mode()
    def laws(self, prompt: Sequence[int], continuations: Ints, first: int) -> Iterator[LawBatch]:
        """Laws of tokens first.. of continuations [n, length] given what stands before them, in batches of rows.

        Yields (rows, [n', length - first, V] float64); softmax in float64 of the model's logits. The prompt is run
        once.
        """
        length = continuations.shape[1]
        positions = length - first
        head, cache = self._prefix(prompt)
        step = max(1, _BATCH_LOGITS // (positions * self.vocab_size))
        for start in range(0, len(continuations), step):
            rows = slice(start, min(start + step, len(continuations)))
            yield rows, self._softmax(self._after(head, cache, continuations[rows], first))

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], continuation: Sequence[int]) -> Floats:
        """Logits [length, V] float64 of every token of one continuation given what stands before it."""
        ids = torch.tensor([[*prompt, *continuation[:-1]]], device=self.model.device)
        return self.model(ids, use_cache=False).logits[0, len(prompt) - 1 :].double().cpu().numpy()

    def _prefix(self, prompt: Sequence[int]) -> tuple[torch.Tensor, DynamicCache]:
        """Logits [V] after the prompt, and its cache."""
        cache = DynamicCache(config=self.model.config)
        out = self.model(torch.tensor([list(prompt)], device=self.model.device), past_key_values=cache)
        return out.logits[0, -1], cache

    def _after(self, head: torch.Tensor, cache: DynamicCache, rows: Ints, first: int) -> torch.Tensor:
        """Logits [n, length - first, V]; equal continuations are run once."""
        given, inverse = np.unique(rows[:, :-1], axis=0, return_inverse=True)
        if given.shape[1] == 0:
            return head.expand(len(rows), 1, -1)
        own = deepcopy(cache)
        own.batch_repeat_interleave(len(given))
        out = self.model(torch.from_numpy(given).to(self.model.device), past_key_values=own).logits
        if first == 0:
            out = torch.cat([head.expand(len(given), 1, -1), out], dim=1)
        else:
            out = out[:, first - 1 :]
        return out[torch.from_numpy(inverse.reshape(-1)).to(out.device)]

    @staticmethod
    def _softmax(logits: torch.Tensor) -> Floats:
        return logits.double().softmax(-1).cpu().numpy()
