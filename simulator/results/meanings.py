"""What every figure of a run means, in one sentence each; `figures` says which direction is better."""

from __future__ import annotations

from simulator.results.goodput import SLO_KEYS
from simulator.results.spread import SHARES

_TIMES = {
    "e2e_latency": "from sending a request to its last token",
    "ttft": "from sending a request to its first token, waiting included",
    "tpot": "time per output token after the first, of a request with at least two",
    "itl": "gap between two tokens, that of a chunk spread over its tokens",
}
_SPREAD = {"mean": "mean", "median": "median", "std": "standard deviation"} | {
    kind: f"{100 * share:.0f}th percentile" for kind, share in SHARES.items() if kind != "median"
}

BENCH_SERVING = {
    "duration": "seconds from the first request sent to the last one finished",
    "completed": "requests that were served",
    "failed": "requests that can never fit and were refused",
    "total_input_tokens": "prompt tokens of the served requests",
    "total_output_tokens": "output tokens of the served requests",
    "request_throughput": "requests served a second",
    "input_throughput": "prompt tokens a second",
    "output_throughput": "output tokens a second, over the whole run; in an open loop this is what was offered",
    "total_throughput": "prompt and output tokens a second",
    "concurrency": "mean number of requests in flight",
    "max_concurrent_requests": "most requests in flight in any second",
    "max_output_tokens_per_s": "most output tokens of any second",
    "max_itl_ms": "the longest gap between two tokens",
    "accept_length": "tokens committed for a request in a decode step, the bonus token included",
    "request_goodput": "requests a second that keep every --goodput limit",
}
"""What bench_serving (sglang 0.5.23) computes too, and computes so."""

OURS = {
    "decode_steps": "decode steps",
    "mean_batch": "requests in a decode step",
    "draft_ms_per_step": "draft time of a decode step",
    "verify_ms_per_step": "verify time of a decode step",
    "step_ms": "time of a decode step, host time included where it is not hidden",
    "tau": "tokens committed in a decode step, by all its requests",
    "latency_per_token_ms": "the paper's L = (T_draft + T_verify) / tau",
    "verified_tokens_per_step": "tokens verified in a decode step, anchors included, padding not",
    "verified_tokens_per_request_step": "tokens verified for a request in a decode step, its anchor included",
    "wasted_share": "share of the verified tokens that were not committed",
    "retractions": "times that a running request lost its KV memory and was prefilled again",
    "beyond_probes_share": "share of decode steps that are larger than anything the profile measured",
    "fallbacks": "times that a rule raised, or a confidence was no probability, and was stepped over",
    "prefill_steps": "prefill chunks",
    "prefill_s": "seconds spent on prefill",
    "decode_s": "seconds spent on decode steps",
    "slo_attainment": "share of the sent requests that keep every --goodput limit",
    **{f"slo_attainment.{key}": f"share of the sent requests that keep the limit on {key}" for key in SLO_KEYS},
    "cached_prompt_tokens": "prompt tokens that came from the prefix cache",
    "cached_prompt_share": "share of the prompt tokens that came from the prefix cache",
    "offered_request_rate": "requests a second that an open loop is sent",
    "backlog_requests": "mean number of requests that wait, over the last quarter of the arrivals",
    "overload": "offered over sustained rate since the backlog was last a full batch; 0 where there is no overload",
    "sustained_request_rate": "requests a second that an overloaded run finished",
    "steady_window_s": "length of the steady window of a closed loop: without its start burst and its last requests",
    "steady_requests": "requests sent inside the steady window",
    "steady_output_throughput": "output tokens a second inside the steady window; a closed loop is judged by it",
    "steady_request_goodput": "requests a second that were sent inside the steady window and keep every limit",
}
"""Names of our own, for what bench_serving does not measure, or measures otherwise."""


def meaning(figure: str) -> str | None:
    """What a figure of a run means; None for one that is not known here."""
    found = BENCH_SERVING.get(figure) or OURS.get(figure)
    if found is not None:
        return found
    kind, _, time = figure.removeprefix("steady_").removesuffix("_ms").partition("_")
    if not figure.endswith("_ms") or kind not in _SPREAD or time not in _TIMES:
        return None
    where = ", of requests sent inside the steady window" if figure.startswith("steady_") else ""
    return f"{_SPREAD[kind]}: {_TIMES[time]}{where}"


def spreads() -> tuple[dict[str, str], dict[str, str]]:
    """The families of figures `KIND_TIME_ms`: kinds and times, each with its meaning."""
    return dict(_SPREAD), dict(_TIMES)
