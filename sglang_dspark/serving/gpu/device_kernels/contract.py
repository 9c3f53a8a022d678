"""The functions of SGLang that our kernels stand in for, by operation; one that moved keeps SGLang's own alone."""

from __future__ import annotations

_DSPARK = "sglang.srt.speculative.dspark_components"

REPLACED = {
    "markov": {
        f"{_DSPARK}.dspark_draft.draft_markov_block": (
            "*markov_head, *base_logits, *anchor_tokens, *draft_hidden, *step_temperatures, *noise, *tp_sync, "
            "*logits_out, *greedy_draft"
        ),
    },
    "rejection": {
        f"{_DSPARK}.dspark_verify.accept_draft_tokens": (
            "*target_logits, *draft_block, *sampling_info, *verify_num_draft_tokens, *cutoff_layout, "
            "*block_verification, **"
        ),
    },
    "confidence": {
        "sglang.srt.models.dspark.DSparkDraftMixin.compute_confidence": (
            "self, *anchor_tokens, *draft_tokens, *confidence_features"
        ),
    },
    "admission": {},  # stands in for our own
}
"""Signatures, as `sglang_dspark.serving.base.signatures` reads them."""
