"""Which card this is, and whether a profile was recorded on the same kind: by name, as torch and NVML give it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9_]+")
_MEMORY = re.compile(r"(\d+)gi?b")
_BOARD = re.compile(r"(sxm|pcie|nvl|oam)\d*")
_SAYS_NOTHING = frozenset(
    "nvidia geforce tesla quadro amd instinct radeon intel gpu graphics generation edition blackwell ac gb gib".split()
)
_SERIES = frozenset(("workstation", "server", "maxq"))


@dataclass(frozen=True)
class Card:
    """model: the words that name it, such as {rtx, 4090} or {h100}. board: sxm, pcie, nvl or oam; memory_gb: of one
    card; series: workstation, server, ... Each of these three is None where the name does not say."""

    model: frozenset[str]
    board: str | None
    memory_gb: int | None
    series: str | None


def card_of(text: str) -> Card:
    """The card that a device name or a profile's `meta.hardware` names; a count in front and brackets do not matter."""
    text = re.sub(r"\([^)]*\)", " ", text.lower()).replace("max-q", "maxq")
    text = re.sub(r"^\s*\d+\s*x\s+", " ", text)
    model, board, memory, series = set(), None, None, None
    for word in _WORD.findall(text):
        if found := _MEMORY.fullmatch(word):
            memory = int(found[1])
        elif found := _BOARD.fullmatch(word):
            board = found[1]
        elif word.startswith("hbm"):
            # NVIDIA's name of an H100 SXM5 says its memory instead: the PCIe card has HBM2e.
            board = board or ("sxm" if word == "hbm3" else None)
        elif word in _SERIES:
            series = word if series is None or word == "maxq" else series
        elif word not in _SAYS_NOTHING:
            model.add(word)
    if model == {"h200"}:
        board = board or "sxm"  # NVIDIA names the board of the other one only, the H200 NVL
    return Card(frozenset(model), board, memory, series)


def same_hardware(recorded: str, here: str) -> bool:
    """Whether two names are of the same card; what one of them leaves out does not tell them apart."""
    first, second = card_of(recorded), card_of(here)
    details = ((first.board, second.board), (first.memory_gb, second.memory_gb), (first.series, second.series))
    return first.model == second.model and all(a is None or b is None or a == b for a, b in details)


def hardware_name() -> str:
    """This process's device in words, as profiles should name it in `meta.hardware`; opens the device."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else cpu_name()


def cpu_name() -> str:
    """A machine without an accelerator, in words."""
    import platform

    return f"cpu ({platform.machine()})"


def launcher_hardware(first: int = 0) -> str | None:
    """The same in the launching process, which must not touch CUDA; None where that cannot be told.

    first: SGLang's --base-gpu-id, an index into what CUDA_VISIBLE_DEVICES leaves visible. The worker, which owns the
    device, looks again.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no NVIDIA driver: another maker's card, or none
        return None if _another_accelerator() else cpu_name()
    try:
        return _nvml_name(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"), first)
    except Exception:  # a MIG slice, an index that is not there: the worker will say it better
        return None
    finally:
        pynvml.nvmlShutdown()


def _nvml_name(nvml: object, visible: str | None, first: int) -> str | None:
    from typing import Any

    api: Any = nvml
    names = [_text(api.nvmlDeviceGetName(api.nvmlDeviceGetHandleByIndex(i))) for i in range(api.nvmlDeviceGetCount())]
    wanted = [str(index) for index in range(len(names))] if visible is None else visible.split(",")
    entry = wanted[first].strip()
    if not entry.isdigit():
        return _text(api.nvmlDeviceGetName(api.nvmlDeviceGetHandleByUUID(entry)))
    if len(set(names)) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return None  # CUDA counts the fastest card first, NVML by bus
    return names[int(entry)]


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _another_accelerator() -> bool:
    import torch

    kinds = (getattr(torch, name, None) for name in ("xpu", "npu", "musa", "hpu", "mps"))
    hip = getattr(torch.version, "hip", None) is not None
    return hip or any(kind is not None and kind.is_available() for kind in kinds)
