"""What the prefix cache gave: figures of a run, bench_serving's report of them, and what is assumed of it."""

from __future__ import annotations

from typing import Any

from sglang_dspark.cost import Assumption
from simulator.engine.run import Assembly, Setting


def cached_figures(run: Assembly, prompt_tokens: int) -> dict[str, float]:
    """cached_prompt_tokens and cached_prompt_share, of what was prefilled first; none where nothing could be cached."""
    if run.model.prompts is None and run.trace.cached_length is None:
        return {}
    if run.model.settings.prefill_elsewhere_s is not None:
        return {}
    cached = run.recorder.cached_tokens
    return {"cached_prompt_tokens": cached, "cached_prompt_share": cached / prompt_tokens if prompt_tokens else 0.0}


def cache_report(figures: dict[str, float]) -> dict[str, Any]:
    """Under the keys of bench_serving's --cache-report (sglang 0.5.23, serving.py:1914); {} without a cache."""
    if "cached_prompt_tokens" not in figures:
        return {}
    report = {
        "total_prompt_tokens": figures["total_input_tokens"],
        "total_cached_tokens": figures["cached_prompt_tokens"],
        "cache_hit_rate_pct": round(100 * figures["cached_prompt_share"], 2),
    }
    return {"cache_report": {key: int(value) if float(value).is_integer() else value for key, value in report.items()}}


def assumed_of_prefixes(setting: Setting) -> list[Assumption]:
    """What is assumed of a trace's prompts and answers in common."""
    trace = setting.trace
    if setting.caches_prefixes:
        said = "answers stay in the prefix cache until evicted, but no later prompt is known to hold one"
        return [Assumption("prefix_hits", None, "", "hash_ids cover prompts alone", said)]
    if trace.cached_length is None and trace.prefix_blocks is None:
        return [Assumption("prefix_hits", 0, "tokens", "no radix-cache hits", "prompts share no prefix")]
    return []
