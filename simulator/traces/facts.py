"""What a trace offers, in words: said of the requests that are served, after every selection."""

from __future__ import annotations

import math

from simulator.traces.prefixes import PrefixBlocks, shareable_tokens
from simulator.traces.trace import Trace


def trace_facts(trace: Trace) -> tuple[str, ...]:
    """Return the span and the offered rate by the trace's stamps, and what a prefix cache holds or can hold."""
    facts = [_offered(trace)]
    if trace.cached_share > 0:
        facts.append(f"{trace.cached_share:.1%} of the prompt tokens are in the prefix cache and not prefilled")
    if trace.prefix_blocks is not None:
        facts.append(_shareable(trace, trace.prefix_blocks))
    return tuple(facts)


def _shareable(trace: Trace, blocks: PrefixBlocks) -> str:
    prompt = trace.input_length.sum()
    said = f"prefixes by hash_ids in blocks of {blocks.block_tokens} tokens"
    known = blocks.tokens(trace.input_length).sum() / prompt
    if known < 1:
        said += f", which cover {known:.1%} of the prompt tokens"
    share = shareable_tokens(blocks, trace.input_length).sum() / prompt
    return f"{said}: {share:.1%} of the prompt tokens could hit a prefix cache without bounds"


def short(value: float) -> str:
    """Return a positive number with at least three significant digits and no exponent."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(digits, 12)}f}"


def _offered(trace: Trace) -> str:
    count = f"{len(trace):,} request{'' if len(trace) == 1 else 's'}"
    if not trace.stamped:
        return f"{count} without stamps"
    if trace.offered_rate is None:
        return count
    if math.isinf(trace.offered_rate):
        return f"{count} at once"
    return f"{count} over {short(trace.span_s)} s: {short(trace.offered_rate)} requests/s"
