"""What SGLang 0.5.23 runs for the operations that we replace, out of its own kernel files (`sglang_files`).

Markov block: per position an embedding, a GEMM and its `MarkovSampleStep`. Rejection: its scatter of the packed rows,
two softmax tables, and its chain sampling. On a CPU its torch twins run, and its chain kernel in Triton's interpreter.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F


class UpstreamSequence:
    """SGLang's launches, on inputs shaped as ours."""

    def __init__(self, files: SimpleNamespace) -> None:
        """files: the modules of `sglang_files.load`."""
        self.files = files

    def markov_block(
        self,
        w1: torch.Tensor,
        w2: torch.Tensor,
        base_logits: torch.Tensor,
        anchor: torch.Tensor,
        temperatures: torch.Tensor,
        offset: torch.Tensor,
        *,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """gamma steps. base_logits: [R, gamma, V]. Returns tokens [R, gamma] and the step logits when kept."""
        logits = torch.empty_like(base_logits) if keep else None
        sampled = keep  # SGLang keeps no logits for a greedy draft
        previous, tokens = anchor, []
        for position in range(base_logits.shape[1]):
            previous = self.files.markov_sample.MarkovSampleStep.execute(
                base_logits=base_logits[:, position],
                bias=F.linear(F.embedding(previous, w1), w2),
                temperatures=temperatures,
                key=7,
                offset=offset,
                step=position,
                step_dtype=base_logits.dtype,
                logits_out=None if logits is None else logits[:, position],
                has_sampled_rows=sampled,
            )
            tokens.append(previous)
        return torch.stack(tokens, dim=1), logits

    def scatter(self, packed: torch.Tensor, lengths: torch.Tensor, gamma: int) -> torch.Tensor:
        """The packed rows at strides of gamma + 1, [R * (gamma + 1), V]: SGLang does so before any accept, ours too."""
        layout = SimpleNamespace(verify_lens=lengths + 1, graph_num_tokens=packed.shape[0])
        return self.files.dspark_verify_window.ScatterCompactToStrided.execute(
            compact=packed, layout=layout, fill_value=0.0, verify_num_draft_tokens=gamma + 1
        )

    def accept(
        self,
        packed: torch.Tensor,
        lengths: torch.Tensor,
        draft_tokens: torch.Tensor,
        temperatures: torch.Tensor,
        step_logits: torch.Tensor,
    ) -> torch.Tensor:
        """packed: [sum of lengths + 1, V]. Returns each request's accepted tokens [R] int32, which SGLang caps at its
        verified length afterwards."""
        (rows, gamma), vocab, device = draft_tokens.shape, packed.shape[1], packed.device
        width, accept = gamma + 1, self.files.dspark_accept.SoftmaxTemp
        strided = self.scatter(packed, lengths, gamma)
        target = accept.execute(logits=strided, temperatures=temperatures, rows_per_request=width)
        draft = accept.execute(
            logits=step_logits.reshape(rows * gamma, vocab), temperatures=temperatures, rows_per_request=gamma
        )
        predicts = torch.empty(rows * width, dtype=torch.int32, device=device)
        index = torch.empty(rows, width, dtype=torch.int32, device=device)
        accepted = torch.empty(rows, dtype=torch.int32, device=device)
        slots = torch.arange(rows * width, dtype=torch.int64, device=device).view(rows, width)
        self.files.reject_sampling.chain_speculative_sampling_triton(
            predicts=predicts,
            accept_index=index,
            accept_token_num=accepted,
            candidates=torch.cat([draft_tokens[:, :1], draft_tokens], dim=1),
            retrive_index=slots,
            retrive_next_token=slots,
            retrive_next_sibling=slots,
            uniform_samples=torch.rand(rows, width, device=device),
            uniform_samples_for_final_sampling=torch.rand(rows, device=device),
            target_probs=target.view(rows, width, vocab),
            draft_probs=draft.view(rows, gamma, vocab),
            threshold_single=1.0,
            threshold_acc=1.0,
            deterministic=True,
        )
        return accepted
