"""The SGLang plug-in: entry point, flags, and what happens before the schedulers start."""

from sglang_dspark.serving.plugin.entry import register

__all__ = ["register"]
