"""Entry point of the SGLang plug-in (`sglang.srt.plugins`).

SGLang calls `register` in every process, before its arguments exist. Nothing heavy is imported here.
"""

from __future__ import annotations

import os
from typing import Any


def register() -> None:
    """Register the hooks of this package.

    SGLang reads an empty SGLANG_PLUGINS as "no restriction"; here it means what it says.
    """
    if os.environ.get("SGLANG_PLUGINS", "unset").strip() == "":
        return
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_dspark.serving import cpu
    from sglang_dspark.serving.control import switch
    from sglang_dspark.serving.plugin import flags, startup
    from sglang_dspark.serving.recording import arrivals

    arrivals.forward_if_asked()
    HookRegistry.register(flags.ADD_TARGET, flags.add_flags, HookType.AFTER)
    HookRegistry.register(flags.READ_TARGET, flags.read_flags, HookType.AROUND)
    HookRegistry.register(WORKER_TARGET, choose_worker, HookType.AFTER)
    register_resolution_hook(startup.RESOLUTION_STEP)(startup.settle)
    switch.register(HookRegistry, HookType)
    if cpu.activate() is not None:
        from sglang_dspark.serving.cpu import gate

        HookRegistry.register(gate.TARGET, gate.admit_cpu, HookType.AROUND)


WORKER_TARGET = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm.create_worker"


def choose_worker(upstream: type, algorithm: Any, server_args: Any) -> type | None:
    """AFTER hook on `SpeculativeAlgorithm.create_worker`: our worker when our flags ask for it."""
    from sglang_dspark.serving.base.options import options_of

    if not algorithm.is_dspark() or not options_of(server_args).active:
        return None
    from sglang.srt.arg_groups.overrides import resolving_view

    from sglang_dspark.serving.base.refusal import leave
    from sglang_dspark.serving.plugin.taking_part import not_served, why_not

    reason = why_not(resolving_view(server_args))
    if reason is not None:  # the launcher decides this; a process that was started without it does not serve half of it
        raise leave(not_served(reason))
    from sglang_dspark.serving.loop.worker import PolicyWorker

    return PolicyWorker
