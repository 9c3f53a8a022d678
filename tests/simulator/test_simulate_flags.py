"""Every flag of `simulate` changes the output or is refused; a new flag must be added here."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import typer
from command_line import PROFILE, QUICK, Answer, assert_one_line_error, call

from simulator import cli

BASE = ("--trace", "example", "--profile", PROFILE, "--json", *QUICK, "--only", "--policy", "argmax:lag=2")
CLOSED = ("--concurrency", "8")
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{number % 60:02d}.0000000,{50 + number},{20 + number % 7}\n" for number in range(40)
)

TICKS = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{n // 4},{50 + n},20\n" for n in range(40))

SHARED = "".join(
    json.dumps({"timestamp": n, "input_length": 600, "output_length": 9, "hash_ids": [7]}) + "\n"
    for n in range(0, 999, 25)
)

# Flag: (what both calls have, what the flag adds). Named files are made by `written`.
CHANGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trace": ((), ("--trace", "{azure}")),
    "profile": ((), ("--profile", "{slower}")),
    "policy": ((), ("--policy", "hull")),
    "policy_profile": ((*CLOSED,), ("--policy-profile", "{slower}")),
    "drafter": ((), ("--drafter", "dflash")),
    "acceptance": ((), ("--acceptance", "0.6,0.5,0.4")),
    "gamma": ((), ("--gamma", "3")),
    "concurrency": ((), ("--concurrency", "3")),
    "time_unit": (("--trace", "{ticks}"), ("--time-unit", "ms")),
    "jitter": (("--trace", "{ticks}"), ("--no-jitter",)),
    "block_tokens": (("--trace", "{shared}"), ("--block-tokens", "64")),
    "no_prefix_cache": (("--trace", "{shared}"), ("--no-prefix-cache",)),
    "limit": ((), ("--limit", "20")),
    "start": ((), ("--start", "2")),
    "end": ((), ("--end", "4")),
    "rate_scale": ((), ("--rate-scale", "3")),
    "request_rate": ((), ("--request-rate", "50")),
    "domains": (("--trace", "{azure}"), ("--domains", "math=1")),
    "confidence": ((), ("--confidence", "temperature=4,bias=-1")),
    "cost": ((), ("--cost", "host_s=0.05")),
    "force_diagonal": (("--profile", "{diagonal}", "--policy", "argmax:lag=2"), ("--force-diagonal",)),
    "schedule": ((), ("--schedule", "no-overlap")),
    "graphs": ((*CLOSED,), ("--graphs", "1,2,4,8,16")),
    "gpu_memory": ((*CLOSED,), ("--gpu-memory", "16")),
    "tp": (("--gpu-memory", "24", "--concurrency", "70", "--limit", "100"), ("--tp", "1")),
    "max_tokens": ((*CLOSED, "--kv-tokens", "6000"), ("--max-tokens", "5000")),
    "max_running_requests": ((*CLOSED,), ("--max-running-requests", "2")),
    "chunked_prefill_size": ((), ("--chunked-prefill-size", "64")),
    "max_prefill_tokens": ((), ("--max-prefill-tokens", "64")),
    "prefill": ((*CLOSED,), ("--prefill", "elsewhere:40")),
    "kv_tokens": ((*CLOSED,), ("--kv-tokens", "2500")),
    "replicas": ((), ("--replicas", "2")),
    "router": (("--replicas", "2"), ("--router", "least-loaded")),
    "dp_attention": (("--replicas", "2"), ("--dp-attention",)),
    "goodput": ((), ("--goodput", "ttft:20")),
    "find_rate": (("--goodput", "ttft:20", "--limit", "20"), ("--find-rate", "0.9")),
    "windows": (("--replications", "2"), ("--windows", "2")),
    "replications": ((), ("--replications", "2")),
    "seed": ((), ("--seed", "5")),
}
ELSEWHERE = {
    "format": "test_format_reads_as_told_or_refuses",
    "sensitivity": "test_sensitivity_varies_one_assumption_at_a_time",
    "ray": "test_ray_is_refused_where_it_is_missing_and_beside_jobs",
    "ray_address": "test_ray_is_refused_where_it_is_missing_and_beside_jobs",
    "jobs": "test_jobs_change_nothing_but_the_time",
    "output": "test_output_is_written",
    "timeline": "test_timeline_is_written",
    "json": "test_json_or_a_table",
    "complete": "test_complete_is_for_records",
    "only": "test_policies_alone_or_beside_the_baselines",
    "wide": "test_json_or_a_table",
    "verbose": "test_json_or_a_table",
    "plot": "test_a_picture_is_drawn",
    "report": "test_a_page_is_written",
    "resume": "test_an_interrupted_sweep_goes_on",
    "random_input_len": "test_a_load_without_a_trace",
    "random_output_len": "test_a_load_without_a_trace",
    "random_range_ratio": "test_a_load_without_a_trace",
    "version": "test_the_version_is_said",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    shipped = json.loads(files("dspark_profiles").joinpath(f"{PROFILE}.json").read_text())
    verify = shipped["tiered"]["verify"]
    verify["seconds"] = [
        seconds * (1 + tokens / 100) for seconds, tokens in zip(verify["seconds"], verify["num_tokens"], strict=True)
    ]
    (folder / "slower.json").write_text(json.dumps(shipped))
    tokens = [8, 16, 32, 64, 128, 256, 512]
    table = {
        "sample_batch_tokens": tokens,
        "sample_steps_per_sec": [150 - 0.2 * n for n in tokens],
        "max_batch_tokens": 512,
    }
    (folder / "diagonal.json").write_text(json.dumps(table))
    (folder / "azure.csv").write_text(AZURE)
    (folder / "ticks.csv").write_text(TICKS)
    (folder / "shared.jsonl").write_text(SHARED)
    names = ("slower.json", "diagonal.json", "azure.csv", "ticks.csv", "shared.jsonl")
    return {name.partition(".")[0]: folder / name for name in names}


def parameters() -> set[str]:
    command = typer.main.get_command(cli.app)
    shell = {"install_completion", "show_completion"}  # typer's own
    return {parameter.name or "" for parameter in command.params} - shell


def test_every_flag_is_looked_at() -> None:
    assert parameters() == set(CHANGES) | set(ELSEWHERE)
    assert all(name in globals() for name in ELSEWHERE.values())


def run(capsys: pytest.CaptureFixture[str], written: dict[str, Path], *more: str) -> Answer:
    arguments = list(BASE)
    flags = [text.format(**written) for text in more]
    # A flag that is given again replaces the one of BASE.
    for flag in [text for text in flags if text.startswith("--")]:
        if flag in arguments:
            at = arguments.index(flag)
            del arguments[at : at + 2]
    return call(capsys, *arguments, *flags)


@pytest.mark.parametrize("name", CHANGES)
def test_the_flag_changes_the_result(capsys: pytest.CaptureFixture[str], written: dict[str, Path], name: str) -> None:
    both, added = CHANGES[name]
    plain, flagged = run(capsys, written, *both), run(capsys, written, *_without(both, added), *added)
    assert flagged.status == 0, flagged.err
    if name == "force_diagonal":
        assert_one_line_error(plain, "was measured only at B = R (1 + gamma)")
        assert "diagonal_forced" in {one["key"] for one in flagged.report["assumptions"]}
        return
    assert plain.status == 0, plain.err
    one, two = plain.report["results"], flagged.report["results"]
    for result in (*one, *two):
        for key in ("dataset_name", "policy", "schedule", "max_concurrency", "request_rate"):
            result.pop(key)  # what was asked for is not yet what came of it
    assert one != two


def _without(arguments: tuple[str, ...], added: tuple[str, ...]) -> tuple[str, ...]:
    """`arguments` less the flag that is about to be given again."""
    if added[0] not in arguments:
        return arguments
    at = arguments.index(added[0])
    return arguments[:at] + arguments[at + 2 :]


REFUSED = {
    "tp=2 does nothing here: the graphs are the profile's": ("--graphs", "profile", "--tp", "2"),
    "tp=2 does nothing here: the graphs are given": ("--graphs", "1,2", "--tp", "2"),
    "gpu-memory=80 does nothing here": ("--graphs", "profile", "--chunked-prefill-size", "99", "--gpu-memory", "80"),
    "graphs 'vllm' is refused": ("--graphs", "vllm"),
    "graphs '2,1' is refused": ("--graphs", "2,1"),
    "--graphs '1,x' is refused": ("--graphs", "1,x"),
    "gpu-memory=-1": ("--gpu-memory", "-1"),
    "max_tokens is 3, expected at least the": ("--max-tokens", "3"),
    "--rate-scale does nothing with --concurrency": ("--rate-scale", "2", "--concurrency", "4"),
    "--request-rate does nothing with --concurrency": ("--request-rate", "2", "--concurrency", "4"),
    "--rate-scale does nothing with --request-rate": ("--rate-scale", "2", "--request-rate", "4"),
    "--router does nothing with one replica": ("--router", "least-loaded"),
    "dp-attention is refused with one rank": ("--dp-attention",),
    "--domains does nothing here: the trace has": ("--domains", "math=1"),
    "--domains does nothing here: drafter 'mtp:deepseek-v4-pro'": (
        "--trace",
        "{azure}",
        "--domains",
        "math=1",
        "--drafter",
        "mtp1",
    ),
    "--confidence bias=1 does nothing here": ("--confidence", "bias=1", "--drafter", "eagle3"),
    "--confidence raw does nothing here: drafter": ("--confidence", "raw", "--drafter", "eagle3"),
    "--confidence online does nothing here": ("--policy", "fixed:k=3", "--confidence", "online"),
    "drafter 'dspark:qwen3-8b' does nothing with an acceptance": (
        "--acceptance",
        "0.6,0.5",
        "--drafter",
        "dspark:qwen3-8b",
    ),
    "--policy-profile does nothing here": ("--policy", "fixed:k=3", "--policy-profile", "vllm-b300-dsv4-flash"),
    "--confidence noise does nothing here": ("--policy", "fixed:k=3", "--confidence", "noise=1"),
    "--no-prefix-cache does nothing with example.jsonl (own): it has no hash_ids": ("--no-prefix-cache",),
    "--no-prefix-cache does nothing with --prefill elsewhere": (
        "--trace",
        "{shared}",
        "--no-prefix-cache",
        "--prefill",
        "elsewhere",
    ),
    "--block-tokens does nothing with the embedded": ("--block-tokens", "16"),
    "--block-tokens does nothing with": ("--trace", "{azure}", "--block-tokens", "16"),
    "--format does nothing with the embedded example": ("--format", "azure"),
    "--force-diagonal does nothing": ("--force-diagonal",),
    "--cost kv_tokens does nothing with --kv-tokens": ("--kv-tokens", "5000", "--cost", "kv_tokens=9000"),
    "drafts, but the drafter is 'none'": ("--drafter", "none"),
    "--output and --timeline name the same file": ("--output", "{azure}.x", "--timeline", "{azure}.x"),
}


@pytest.mark.parametrize("says", REFUSED)
def test_flags_that_would_do_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], written: dict[str, Path], says: str
) -> None:
    assert_one_line_error(run(capsys, written, *REFUSED[says]), says)


def test_format_reads_as_told_or_refuses(capsys: pytest.CaptureFixture[str], written: dict[str, Path]) -> None:
    detected = run(capsys, written, "--trace", "{azure}")
    told = run(capsys, written, "--trace", "{azure}", "--format", "azure")
    assert detected.out == told.out and told.status == 0
    assert_one_line_error(run(capsys, written, "--trace", "{azure}", "--format", "vidur"), "azure.csv, line 1")
    assert_one_line_error(run(capsys, written, "--trace", "{azure}", "--format", "tarot"), "tarot")


def test_jobs_change_nothing_but_the_time(capsys: pytest.CaptureFixture[str], written: dict[str, Path]) -> None:
    one, two = (run(capsys, written, "--replications", "2", "--policy", "hull", "--jobs", jobs) for jobs in ("1", "2"))
    assert one.status == two.status == 0 and one.out == two.out


def test_ray_is_refused_where_it_is_missing_and_beside_jobs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does is seen on a real cluster (tests/ray_cluster)."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for flags in (("--ray",), ("--ray-address", "head:6379")):
        asked = ("--trace", "example", "--profile", PROFILE, *flags)
        assert_one_line_error(call(capsys, *asked), 'pip install "sglang-dspark[ray]"')
        assert_one_line_error(call(capsys, *asked, "--jobs", "2"), "--jobs 2 counts processes of this machine")


def test_output_is_written(capsys: pytest.CaptureFixture[str], written: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        answer = run(capsys, written, "--policy", "hull", "--policy", "fixed:k=7", "--output", str(tmp_path / name))
        assert answer.status == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["policy"] for line in lines] == [result["policy"] for result in answer.report["results"]]


def test_a_page_is_written(
    capsys: pytest.CaptureFixture[str], written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds is looked at in tests/report."""
    pytest.importorskip("vl_convert", reason="needs the extra `report`")
    monkeypatch.setattr("simulator.report.page._library", lambda: "")
    assert run(capsys, written, "--report", str(tmp_path / "page.html")).status == 0
    assert '"format":"sglang-dspark-page"' in (tmp_path / "page.html").read_text()


def test_timeline_is_written(capsys: pytest.CaptureFixture[str], written: dict[str, Path], tmp_path: Path) -> None:
    assert run(capsys, written, "--timeline", str(tmp_path / "t.json")).status == 0
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_json_or_a_table(capsys: pytest.CaptureFixture[str], written: dict[str, Path]) -> None:
    table = call(capsys, *[text for text in BASE if text != "--json"], "--wide")
    assert table.status == 0 and "argmax:lag=2" in table.out and "TPOT" in table.out
    assert "assumed: prefill_base_s" in table.out and "max running requests 256" in table.out
    with pytest.raises(json.JSONDecodeError):
        json.loads(table.out)


def test_kv_memory_is_stated_once_and_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    table = call(capsys, *[text for text in BASE if text != "--json"], "--wide", "--kv-tokens", "400")
    assert "requests can never fit in 400 KV tokens" in table.out
    assert "KV 400 tokens" in table.out and "assumed: kv_tokens" not in table.out


def test_defaults_fit_a_smaller_block(capsys: pytest.CaptureFixture[str], written: dict[str, Path]) -> None:
    answer = call(capsys, "--trace", "example", "--profile", PROFILE, "--json", *QUICK, "--gamma", "3")
    policies = [result["policy"] for result in answer.report["results"]]
    assert policies[1:] == ["fixed:k=3", "hull", "argmax:lag=2", "self-tuning"]


def test_complete_is_for_records(capsys: pytest.CaptureFixture[str]) -> None:
    """tests/replay has what it does with them."""
    answer = call(capsys, *BASE, "--complete")
    assert answer.status == 2 and "--complete does nothing with example" in answer.err


def test_sensitivity_varies_one_assumption_at_a_time(
    capsys: pytest.CaptureFixture[str], written: dict[str, Path]
) -> None:
    report = run(
        capsys, written, "--concurrency", "2", "--policy", "fixed:k=3", "--policy", "hull", "--sensitivity"
    ).report
    found = report["sensitivity"]
    assert {found["leader"], found["runner_up"]} == {"fixed:k=3", "hull"}
    names = [one["what"] for one in found["varied"]]
    assert len(set(names)) == len(names) >= 8 and any("prefill" in name for name in names)
    assert_one_line_error(run(capsys, written, "--policy", "hull", "--sensitivity"), "add another --policy")


SMALL = ("--profile", PROFILE, "--limit", "60", "--jobs", "1", "--replications", "2", "--json")


def test_policies_alone_or_beside_the_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--trace", "example", *SMALL, "--concurrency", "4", "--policy", "hull")
    beside = [one["policy"] for one in call(capsys, *base).report["results"]]
    assert beside[0] == "none" and beside[1].startswith("fixed:k=") and beside[2:] == ["hull"]
    assert [one["policy"] for one in call(capsys, *base, "--only").report["results"]] == ["hull"]
    alone = call(capsys, "--trace", "example", *SMALL, "--only")
    assert_one_line_error(alone, "--only does nothing without --policy")


def test_a_picture_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    base = ("--trace", "example", *SMALL, "--policy", "hull")
    for loads, name in (("4", "one.svg"), ("4,8", "sweep.png")):
        assert call(capsys, *base, "--concurrency", loads, "--plot", str(tmp_path / name)).status == 0
        assert (tmp_path / name).stat().st_size > 2000
    assert_one_line_error(call(capsys, *base, "--plot", str(tmp_path / "x.gif")), "ends in .svg or .png")


def test_a_load_without_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ("--random-input-len", "100", "--random-output-len", "40")
    base = (*lengths, *SMALL, "--only", "--policy", "fixed:k=3", "--concurrency", "4")
    (even,) = call(capsys, *base).report["results"]
    assert (even["total_input_tokens"], even["total_output_tokens"]) == (6000, 2400)
    (varied,) = call(capsys, *base, "--random-range-ratio", "0.5").report["results"]
    assert 3000 < varied["total_input_tokens"] < 6000 and 1200 < varied["total_output_tokens"] < 2400
    assert_one_line_error(call(capsys, *SMALL), "no load is given, expected --trace FILE")
    assert_one_line_error(call(capsys, *base, "--trace", "example"), "does nothing with --trace")
    assert_one_line_error(call(capsys, *lengths, *SMALL), "has no stamps for an open loop")


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version").out.startswith("sglang-dspark ")


def test_an_interrupted_sweep_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished is kept, a line that was cut off is not; the end is that of a sweep without a break."""
    from simulator import parallel

    base = ("--trace", "example", *SMALL, "--policy", "hull", "--concurrency", "4,8")
    whole, kept = call(capsys, *base), tmp_path / "runs"
    real, calls = parallel.run_once, []

    def counted(*arguments, **more):
        if len(calls) == 15:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments, **more)

    monkeypatch.setattr(parallel, "run_once", counted)
    interrupted = call(capsys, *base, "--resume", str(kept))
    assert interrupted.status == 130 and interrupted.out == ""
    with kept.open("a") as file:
        file.write('{"key": "cut o')
    before = kept.read_text().count("figures")
    monkeypatch.setattr(parallel, "run_once", real)
    assert 8 <= before <= 15 and call(capsys, *base, "--resume", str(kept)).out == whole.out
    kept.write_text('{"format": "sglang-dspark-runs", "version": 99}\n')
    assert_one_line_error(call(capsys, *base, "--resume", str(kept)), "holds runs of version 99, expected 1")
    kept.write_text("a,b\n")
    assert_one_line_error(call(capsys, *base, "--resume", str(kept)), "does not hold kept runs")
