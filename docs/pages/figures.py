"""What a run measures."""

from __future__ import annotations

from pages.text import code, plain, table

PROFILE = "vllm-b300-dsv4-flash"


def figures_page() -> str:
    from simulator.results.figures import more_is_better
    from simulator.results.meanings import BENCH_SERVING, OURS, meaning, spreads

    known = figures_of_runs()
    missing = sorted(name for name in known if meaning(name) is None)
    assert not missing, f"simulator/results/meanings.py does not say what these mean: {', '.join(missing)}"

    def better(name: str) -> str:
        try:
            return "more" if more_is_better(name, dict.fromkeys((*BENCH_SERVING, *OURS), 0.0)) else "less"
        except Exception:
            return ""

    def rows(names: dict[str, str]) -> list[list[str]]:
        return [[code(name), better(name), plain(text)] for name, text in names.items()]

    kinds, times = spreads()
    return "\n\n".join(
        [
            "# Figures of a run",
            "What `simulate --output FILE` writes a policy, and what `dspark tune --objective NAME` searches for. "
            "Names that end in `_ms` are milliseconds. *Better* says which direction is; one without it is neither.",
            "## Under bench_serving's names",
            "Computed as SGLang 0.5.23's bench_serving computes them, over the whole run.",
            table(["figure", "better", "meaning"], rows(BENCH_SERVING)),
            "Times are `KIND_TIME_ms`, such as `p99_ttft_ms`, all of them better when less:",
            table(["kind", "meaning"], ([code(name), plain(text)] for name, text in kinds.items())),
            table(["time", "meaning"], ([code(name), plain(text)] for name, text in times.items())),
            "With `steady_` before them (`itl` excepted): of requests sent inside the steady window of a closed loop.",
            "## Under names of our own",
            table(["figure", "better", "meaning"], rows(OURS)),
        ]
    )


def figures_of_runs() -> set[str]:
    """Every figure of a small closed loop with limits and shared prompts, and of a small open one."""
    from simulator import Load, simulate
    from simulator.traces import example_trace, first_requests

    trace = first_requests(example_trace(), 20)
    limits = {"ttft": 500.0, "tpot": 50.0, "e2el": 1e4}
    loads = Load(trace, concurrency=4, goodput=limits), Load(trace, goodput=limits)
    return {
        name for load in loads for name in simulate(load, PROFILE, ["hull"], replications=1, jobs=1).results[0].figures
    }
