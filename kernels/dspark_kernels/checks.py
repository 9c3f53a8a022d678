"""Argument checks shared by the public functions. They look at shapes and dtypes only: values would cost a host
synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def expect_tensor(
    name: str,
    tensor: torch.Tensor,
    shape: Sequence[int | None],
    dtypes: torch.dtype | Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Raise TypeError or ValueError unless `tensor` has this shape (None: any size), one of these dtypes and this
    device."""
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.dtype not in allowed:
        raise TypeError(f"{name} is {tensor.dtype}, expected {' or '.join(str(dtype) for dtype in allowed)}")
    fits = tensor.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{wanted}]")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, expected {device}")


def expect_rows(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError unless the last dimension is dense: kernels read whole rows."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} along its last dimension, expected 1")


def expect_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is refused, expected {low}..{high}")
