"""Ragged verification under CUDA graphs on FlashInfer, which SGLang 0.5.23 refuses.

`register()` puts our subclass of SGLang's FlashInfer backend in place of it. `plan` is the pure part (which rows
attend to what), `backend` the part that touches SGLang and FlashInfer.
"""

from __future__ import annotations

from typing import Any

from sglang_dspark.serving.base.contract import moved
from sglang_dspark.serving.gpu.flashinfer_ragged.contract import CALLS


def register() -> None:
    """Make `--attention-backend flashinfer` create our backend; call once per process, before the model runner
    exists.

    Nothing changes for MLA models, nor for batches without a ragged verify layout, nor with a SGLang whose backend is
    not the one that ours extends (then the mode is cap-accept, see `plugin.taking_part`).
    """
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend

    upstream = ATTENTION_BACKENDS["flashinfer"]
    if getattr(upstream, "_dspark_ragged", False):
        return

    def create(runner: Any) -> Any:
        if runner.use_mla_backend or moved(CALLS):
            return upstream(runner)
        from sglang_dspark.serving.gpu.flashinfer_ragged.backend import FlashInferAttnBackend

        return FlashInferAttnBackend(runner, init_new_workspace=runner.init_new_workspace)

    create._dspark_ragged = True  # type: ignore[attr-defined]
    register_attention_backend("flashinfer")(create)
