"""What SGLang 0.5.23 lets through although its scheduler dies of it, and which requests are the server's own.

Installed in the HTTP process when our flags are used; all of it becomes a 400 with one sentence.
"""

from __future__ import annotations

from typing import Any

from sglang_dspark.serving.base.request_caps import cap_of
from sglang_dspark.serving.base.steps import SERVERS_OWN


def guard() -> None:
    """Wrap SGLang's checks in this process."""
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    if getattr(TokenizerManager._validate_one_request, "dspark_guards", False):
        return
    validate, update = TokenizerManager._validate_one_request, TokenizerManager.update_weights_from_disk

    def checked(manager: Any, request: Any, input_ids: list[int] | None) -> None:
        refuse_impossible(request, input_ids, int(manager.model_config.vocab_size))
        if isinstance(request.sampling_params, dict):
            cap_of(request.sampling_params.get("custom_params"))
        mark_servers_own(manager, request)
        validate(manager, request, input_ids)

    async def updated(manager: Any, obj: Any, request: Any = None) -> Any:
        refused = refused_update(str(obj.model_path), manager.server_args)
        return (False, refused, 0) if refused else await update(manager, obj, request)

    checked.dspark_guards = True  # type: ignore[attr-defined]
    TokenizerManager._validate_one_request = checked
    TokenizerManager.update_weights_from_disk = updated


def refuse_impossible(request: Any, input_ids: list[int] | None, vocab_size: int) -> None:
    """ValueError for a prompt without tokens, and for a token that the model does not have.

    Images and other media bring placeholders of their own, which are not looked at.
    """
    if input_ids is None or getattr(request, "input_embeds", None) is not None:
        return
    if len(input_ids) == 0:
        raise ValueError("The prompt has no tokens, expected at least one.")
    media = getattr(request, "contains_mm_input", None)
    if media is not None and media():
        return
    for token in (min(input_ids), max(input_ids)):
        if not 0 <= token < vocab_size:
            raise ValueError(f"Token id {token} is not in the model's vocabulary, expected 0..{vocab_size - 1}.")


def mark_servers_own(manager: Any, request: Any) -> None:
    """Name SGLang's start-up request, which comes before the server says that it is up."""
    from sglang.srt.managers.tokenizer_manager import ServerStatus

    if manager.server_status is ServerStatus.Starting and isinstance(request.sampling_params, dict):
        custom = dict(request.sampling_params.get("custom_params") or {})
        request.sampling_params["custom_params"] = {**custom, SERVERS_OWN: True}


def refused_update(path: str, server_args: Any) -> str:
    """Why /update_weights_from_disk cannot take this checkpoint, or an empty string.

    SGLang loads one path into the target and into the draft. Where the checkpoint holds no draft that raises, it rolls
    back from the same wrong path, raises again, and its scheduler ends.
    """
    draft = server_args.speculative_draft_model_path
    if draft is None or draft == server_args.model_path:
        return ""
    return (
        f"{path} is refused: SGLang 0.5.23 would load it into the target and into the DSpark draft of {draft} and end; "
        "update one of them with /begin_weight_update, /update_weights_from_tensor and /end_weight_update"
    )
