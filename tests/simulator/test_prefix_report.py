"""What `simulate` says of shared prefixes: the trace's share, the share that hit, bench_serving's report of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import PROFILE, call

from simulator import EngineSettings, simulate
from simulator.inputs import Engine, Load
from simulator.traces import load_trace

MOONCAKE = Path(__file__).parents[3] / "shared" / "data" / "mooncake" / "synthetic_trace.jsonl"
RUN = ("--profile", PROFILE, "--policy", "fixed:k=7", "--policy", "fixed:k=3", "--replications", "1", "--jobs", "1")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty prompts of 1,024 tokens that begin with the same 512."""
    rows = [
        {"timestamp": 100 * n, "input_length": 1024, "output_length": 20, "hash_ids": [0, n + 1]} for n in range(30)
    ]
    path = tmp_path_factory.mktemp("shared") / "shared.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("loop", [("--concurrency", "1"), ()])
def test_the_table_says_what_could_hit_and_what_hit(
    capsys: pytest.CaptureFixture[str], shared: str, loop: tuple[str, ...]
) -> None:
    said = flat(call(capsys, "--trace", shared, *RUN, *loop, "--wide").out)
    assert "blocks of 512 tokens: 48.3% of the prompt tokens could hit a prefix cache without bounds" in said
    assert "; 48.3 % of the prompt tokens hit the prefix cache" in said
    assert "prefix cache LRU, requests first come first served" in said
    assert "assumed: answers stay in the prefix cache until evicted, but no later prompt is known to hold one" in said
    assert "share no prefix" not in said
    said = flat(call(capsys, "--trace", shared, *RUN, *loop, "--no-prefix-cache", "--wide").out)
    assert "48.3% of the prompt tokens could hit" in said and "prefix cache off" in said
    assert "hit the prefix cache" not in said and "share no prefix" not in said


def test_json_has_the_keys_of_bench_serving(capsys: pytest.CaptureFixture[str], shared: str) -> None:
    report = call(capsys, "--trace", shared, *RUN, "--concurrency", "1", "--json").report
    policies = report["results"]
    for result in (*policies, *(one for policy in policies for one in policy["replications"])):
        assert (result["cached_prompt_tokens"], result["cached_prompt_share"]) == (29 * 512, 29 / 60)
        assert result["cache_report"] == {
            "total_prompt_tokens": 30 * 1024,
            "total_cached_tokens": 29 * 512,
            "cache_hit_rate_pct": 48.33,
        }
    assert report["setting"]["caches_prefixes"] and report["setting"]["prefix_cache"]
    result, *_ = call(capsys, "--trace", shared, *RUN, "--json", "--no-prefix-cache").report["results"]
    assert "cache_report" not in result and "cached_prompt_tokens" not in result


def test_without_hash_ids_prompts_share_no_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    run = call(capsys, "--trace", "example", *RUN, "--limit", "20", "--json").report
    assert not run["setting"]["caches_prefixes"] and "cache_report" not in run["results"][0]
    assert "prompts share no prefix" in [one["text"].partition(" (")[0] for one in run["assumptions"]]


def test_decode_servers_keep_no_prefix_cache(capsys: pytest.CaptureFixture[str], shared: str) -> None:
    """SGLang switches it off there (pd_disaggregation_hook.py:118)."""
    run = call(capsys, "--trace", shared, *RUN, "--prefill", "elsewhere", "--json").report
    assert not run["setting"]["caches_prefixes"] and "cache_report" not in run["results"][0]


def test_the_timeline_shows_what_is_cached(capsys: pytest.CaptureFixture[str], shared: str, tmp_path: Path) -> None:
    assert call(capsys, "--trace", shared, *RUN, "--timeline", str(tmp_path / "t.json")).status == 0
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    cached = [event["args"]["cached kv tokens"] for event in events if event["name"] == "cached kv tokens"]
    assert max(cached) >= 29 * 512


@pytest.mark.skipif(not MOONCAKE.exists(), reason="mooncake/synthetic_trace.jsonl is not beside the repository")
def test_prefixes_of_the_mooncake_trace_are_worth_throughput() -> None:
    """The part that hits, with the room for it, and what that does to the time of prefills."""
    trace, results = load_trace(MOONCAKE, limit=600), []
    for cache in (True, False):
        engine = EngineSettings(prefix_cache=cache, kv_tokens=20_000_000)
        run = simulate(
            Load(trace, concurrency=32), Engine(PROFILE, settings=engine), ["fixed:k=7"], replications=1, jobs=1
        )
        results.append(run.results[0].figures)
    hit, cold = results
    share = hit["cached_prompt_share"]
    assert 0.03 < share < 0.25
    assert hit["prefill_s"] / cold["prefill_s"] == pytest.approx(1 - share, abs=0.03)
    assert hit["output_throughput"] > cold["output_throughput"]
