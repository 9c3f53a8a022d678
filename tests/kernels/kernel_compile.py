"""Compiles, without a GPU, every kernel specialisation that a piece of code launches in the interpreter."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

Launch = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@contextlib.contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Inside, kernels run in the interpreter and every launch is noted."""
    from dspark_kernels.interpreter import interpreted
    from triton.runtime.interpreter import InterpretedFunction

    launches: list[Launch] = []
    run = InterpretedFunction.run

    def noting(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        launches.append((self.fn, args, dict(kwargs)))
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = noting
    try:
        with interpreted():
            yield launches
    finally:
        InterpretedFunction.run = run


def compile_launch(launch: Launch, capability: int = 90) -> Any:
    """The compiled kernel (with `asm["cubin"]`) for a compute capability, from the arguments of one launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import mangle_type

    function, args, kwargs = launch
    jitted = getattr(sys.modules[function.__module__], function.__name__)
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    values = inspect.signature(function).bind(*args, **kwargs).arguments
    signature, constants = {}, {}
    for parameter in jitted.params:
        value = values[parameter.name]
        # Triton compiles an integer argument of 1 as a constant.
        if parameter.is_constexpr or (type(value) is int and value == 1):
            signature[parameter.name], constants[(parameter.num,)] = "constexpr", value
        else:
            signature[parameter.name] = mangle_type(value)
    return triton.compile(
        ASTSource(jitted, signature, constants), target=GPUTarget("cuda", capability, 32), options=options
    )
