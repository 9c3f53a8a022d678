"""A reference platform for machines without an accelerator, offered to SGLang through `sglang.srt.platforms`.

It exists so that the real engine can be tried, tested and debugged anywhere; it is slow and says so. SGLang imports
this module in every process, so nothing heavy is imported here.
"""

import os

PLATFORM_CLASS = "sglang_dspark.serving.cpu.platform.ReferenceCpuPlatform"


def activate() -> str | None:
    """Return the platform's class path, or None where it must not be offered.

    It is withheld when any accelerator is visible, when SGLang's own CPU engine was asked for
    (SGLANG_USE_CPU_ENGINE=1), and when plug-ins are switched off (an empty SGLANG_PLUGINS, which SGLang itself
    reads as "no restriction").
    """
    if os.environ.get("SGLANG_PLUGINS", "unset").strip() == "":
        return None
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1" or accelerator_present():
        return None
    return PLATFORM_CLASS


def accelerator_present() -> bool:
    """True when torch sees a CUDA, ROCm, XPU, NPU, MUSA, HPU or MPS device."""
    import torch

    # torch.accelerator covers every backend that registers itself with torch, in-tree and out of tree.
    if torch.accelerator.is_available():
        return True
    return any(
        backend is not None and backend.is_available()
        for backend in (getattr(torch, name, None) for name in ("cuda", "xpu", "npu", "musa", "hpu", "mps"))
    )
