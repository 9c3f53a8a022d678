"""A tiny random target, and an in-process stand-in for SGLang that samples from it, faithfully or with a fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCAB = 48
GAMMA = 4

Twist = Callable[[torch.Tensor], torch.Tensor]
"""What a faulty server does to a law [n, V]."""


def tiny_model(seed: int = 0) -> Qwen3ForCausalLM:
    """A random model whose laws are neither flat nor certain."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.5,
        tie_word_embeddings=False,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config).eval()


class TinyServer:
    """An httpx handler. twist: applied to the law of every sampled token; greedy_fault: changes greedy output;
    lengths: verified draft tokens of the blocks of each request."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        twist: Twist | None = None,
        greedy_fault: bool = False,
        lengths: Sequence[int] = (1, 2, 4),
        histogram: bool = True,
    ) -> None:
        self.model, self.twist, self.greedy_fault = model, twist, greedy_fault
        self.lengths, self.histogram = lengths, histogram
        self.generator = torch.Generator().manual_seed(3)
        self.waiting: list[tuple[dict[str, Any], asyncio.Future[list[int]]]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        if path == "/server_info":
            ours = {"gamma": GAMMA, "policy": "under test", "lossless": True, "since_step": 0, "counters": {}}
            return httpx.Response(200, json={"model_path": "tiny", "internal_states": [{"dspark": ours}]})
        if path == "/abort_request":
            return httpx.Response(200)
        if "rid" in body:
            await asyncio.sleep(3600)
        return httpx.Response(200, json=self.answer(body, await self.batched(body)))

    async def batched(self, body: dict[str, Any]) -> list[int]:
        """Requests that arrive within 20 ms are decoded in one batch, by the first of them."""
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self.waiting.append((body, future))
        if len(self.waiting) > 1:
            return await future
        await asyncio.sleep(0.02)
        waiting, self.waiting = self.waiting, []
        groups: dict[str, list[tuple[dict[str, Any], asyncio.Future[list[int]]]]] = {}
        for one, its in waiting:
            groups.setdefault(json.dumps([one["input_ids"], one["sampling_params"]]), []).append((one, its))
        for members in groups.values():
            for (_, its), tokens in zip(members, self.decode(members[0][0], len(members)), strict=True):
                its.set_result(tokens)
        return await future

    @torch.inference_mode()
    def decode(self, body: dict[str, Any], count: int) -> list[list[int]]:
        """`count` continuations of one prompt."""
        sampling = body["sampling_params"]
        ids = torch.tensor([body["input_ids"]] * count)
        for step in range(sampling["max_new_tokens"]):
            law = self.model(ids, use_cache=False).logits[:, -1].double().softmax(-1)
            if sampling["temperature"] == 0:
                best = law.topk(2).indices
                token = best[:, int(self.greedy_fault and step == 3)]
            else:
                law = law if self.twist is None else self.twist(law)
                token = torch.multinomial(law, 1, generator=self.generator)[:, 0]
            ids = torch.cat([ids, token[:, None]], 1)
        return ids[:, len(body["input_ids"]) :].tolist()

    def answer(self, body: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
        meta: dict[str, Any] = {"finish_reason": {"type": "length"}, "spec_verify_ct": len(self.lengths)}
        if self.histogram:
            meta["spec_cap_lens_histogram"] = [self.lengths.count(size - 1) for size in range(GAMMA + 2)]
        if body.get("return_logprob"):
            meta["output_top_logprobs"] = self.logprobs(body["input_ids"], tokens)
        return {"output_ids": tokens, "meta_info": meta}

    @torch.inference_mode()
    def logprobs(self, prompt: list[int], tokens: list[int]) -> list[list[list[Any]]]:
        logits = self.model(torch.tensor([prompt + tokens[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        values, ids = logits.log_softmax(-1).topk(32)
        return [
            [[v, i, None] for v, i in zip(row, names, strict=True)]
            for row, names in zip(values.tolist(), ids.tolist(), strict=True)
        ]
