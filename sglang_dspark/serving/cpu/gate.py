"""SGLang 0.5.23's DSPARK argument handler accepts CUDA, NPU and XPU by name and does not ask the platform."""

from collections.abc import Callable
from typing import Any

TARGET = "sglang.srt.arg_groups.speculative_hook._handle_dspark"


class _AcceptedDevice:
    """A view of the resolving configuration whose device passes the handler's list; the rest is the view's own."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return "cuda" if name == "device" else getattr(self._view, name)


def admit_cpu(handler: Callable[[Any], None], server_args: Any) -> None:
    """Run SGLang's handler for `--device cpu` on the reference platform, which serves DSPARK.

    Only the device name that the handler compares is changed, and only while it runs.
    """
    from sglang.srt.arg_groups import speculative_hook
    from sglang.srt.platforms import current_platform

    resolving_view = speculative_hook.resolving_view
    device = str(resolving_view(server_args).device)
    if device != "cpu" or not current_platform.supports_speculative_algorithm("DSPARK"):
        handler(server_args)
        return
    speculative_hook.resolving_view = lambda args: _AcceptedDevice(resolving_view(args))
    try:
        handler(server_args)
    finally:
        speculative_hook.resolving_view = resolving_view
