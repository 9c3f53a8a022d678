"""Every kernel test runs the Triton kernel itself: in the interpreter on a CPU, and with `-m gpu` on a CUDA
device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

NO_TRITON = "needs torch and triton (extra `serve`)"
NO_CUDA = "needs a CUDA device"


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The device on which public functions launch their kernels; fresh tensors there hold NaN or a sentinel, never
    luck."""
    torch = pytest.importorskip("torch", reason=NO_TRITON)
    interpreter = pytest.importorskip("dspark_kernels.interpreter", reason=NO_TRITON)
    poison_empty(torch, monkeypatch)
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip(NO_CUDA)
        yield torch.device("cuda")
    else:
        with interpreter.interpreted():
            yield torch.device("cpu")


def poison_empty(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what `torch.empty` hands out, so that a kernel that forgets to write is seen."""
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> Any:
        tensor = real(*args, **kwargs)
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)

    monkeypatch.setattr(torch, "empty", empty)
