"""Per-request acceptance in a response's `meta_info`, from what SGLang carries there already.

SGLang's own `spec_accept_rate` divides by what was drafted. Under a policy much of that is never verified, so a request
looks worse than it is: `spec_num_verified_drafts` and `spec_verified_accept_rate` stand beside it.
"""

from __future__ import annotations

from typing import Any


def show() -> None:
    """Wrap SGLang's `meta_info` of speculation in this process."""
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    upstream = getattr(TokenizerManager, "_calculate_spec_decoding_metrics", None)
    if upstream is None or getattr(upstream, "dspark_shows", False):
        return

    def shown(manager: Any, meta_info: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = upstream(manager, meta_info, *args, **kwargs)
        meta_info.update(verified_of(meta_info))
        return result

    shown.dspark_shows = True  # type: ignore[attr-defined]
    TokenizerManager._calculate_spec_decoding_metrics = shown


def verified_of(meta_info: dict[str, Any]) -> dict[str, Any]:
    """What is added to the `meta_info` of one request, nothing where SGLang says nothing of speculation.

    A step without an entry in `spec_cap_lens_histogram` (by verify length, anchor included) verified its whole block.
    """
    steps, proposed = meta_info.get("spec_verify_ct"), meta_info.get("spec_num_proposed_drafts")
    correct = meta_info.get("spec_num_correct_drafts")
    if not steps or proposed is None or correct is None:
        return {}
    lengths = list(meta_info.get("spec_cap_lens_histogram") or ())
    capped = sum((length - 1) * count for length, count in enumerate(lengths) if length)
    verified = capped + (steps - sum(lengths)) * (proposed // steps)
    rate = {"spec_verified_accept_rate": correct / verified} if verified else {}
    return {"spec_num_verified_drafts": verified, **rate}
