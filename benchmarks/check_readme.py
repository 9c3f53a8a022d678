"""Whether README's figures, and those of the docs, are still what their commands print.

Run: python benchmarks/check_readme.py [PART ...] [--traces FOLDER] (default: the parts that need no trace; `all`: every
one). Exit status 1 if a figure is another. Simulations are byte-reproducible, so a figure is compared as printed.

files    (seconds) counts, lists, estimates' errors against the package; the live table against the guided path's page
result   (seconds) the block of docs/reading_a_result.md, run again
load     (minutes) the table by load, one line a load, and its picture; --loads 64 for some of them, without it
tune     (minutes) the table of `dspark tune`, 200 trials each; --rows code for some of them
regret   (a minute) README's sentence on wrong confidences, and its row in docs/regret.md

FOLDER holds AzureLLMInferenceTrace_conv.csv, AzureLLMInferenceTrace_code.csv and Mooncake's synthetic_trace.jsonl, at
any depth. What was measured on a machine once (live servers, training) is not measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROFILE = "vllm-b300-dsv4-flash"
TRACES = {
    "conversation": "AzureLLMInferenceTrace_conv.csv",
    "code": "AzureLLMInferenceTrace_code.csv",
    "Mooncake": "synthetic_trace.jsonl",
}

Claim = tuple[str, str, str]
"""(what, as it is written, as it is found)."""


def rows(text: str, head: str) -> Iterator[list[str]]:
    """The cells of a Markdown table whose head begins so, without emphasis and code marks."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(head):
            break
    next(lines, "")
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip(" *`") for cell in line.strip("|").split("|")]


def plain(text: str) -> str:
    return " ".join(text.split())


def files(args: argparse.Namespace) -> Iterator[Claim]:
    """What the package and other pages of the repository settle."""
    from sglang_dspark.cost import profile_names
    from sglang_dspark.cost.estimate.accuracy import error_band
    from sglang_dspark.policies import POLICIES
    from sglang_dspark.policies.format import ONLINE

    words = plain(README)
    count = sum(name.startswith("estimate-") for name in profile_names())
    yield "estimates that ship", *match(words, r"Of (\d+) that ship as files", str(count))
    listed = {
        part.strip(" `").partition(":")[0] for row in rows(README, "| policy | class") for part in row[0].split(",")
    }
    everyone = set(POLICIES) - {wrapper.name for wrapper in ONLINE.values()}  # parameters of others
    yield "policies in the table", ", ".join(sorted(listed)), ", ".join(sorted(everyone))
    band = json.loads((ROOT / "sglang_dspark/cost/estimate/accuracy.json").read_text())
    assert error_band().text
    told = (
        r"off: (.+? % on \d+ published decode steps \(at most \d+ %\), \d+ % on \d+ served loads \(at most \d+ %\), "
        r"\d+ % on vLLM's verify steps of 4 x B300, where the gains of policies are off by \d+ points "
        r"\(at most \d+\))"
    )
    steps, serving, gains = band["steps"], band["serving"], band["gains"]
    found = (
        f"{steps['mean']:.0%} on {steps['count']} published decode steps (at most {steps['largest']:.0%}), "
        f"{serving['mean']:.0%} on {serving['count']} served loads (at most {serving['largest']:.0%}), "
        f"{band['staircase']['mean']:.0%} on vLLM's verify steps of 4 x B300, where the gains of policies are off by "
        f"{100 * gains['mean']:.0f} points (at most {100 * gains['largest']:.0f})"
    )
    yield "errors of estimates", *match(words, told, re.sub(r"(\d)%", r"\1 %", found))
    from simulator.results.accuracy import error_words

    yield "errors of predictions", *match(words, r"with every result: (.+?) \(\[docs/validation", error_words())
    guided = (ROOT / "examples/README.md").read_text()
    for row in rows(README, "| 4 requests in flight"):
        for cell in row[1:3]:
            there = cell.lstrip("-+").replace(" %", "%") in guided
            yield f"live table: {row[0]}", cell, cell if there else "not in examples/README.md"


def match(text: str, pattern: str, found: str) -> tuple[str, str]:
    """What the text says there, and what was found."""
    said = re.search(pattern, text)
    return (said.group(1) if said else f"no sentence like {pattern}"), found


def result(args: argparse.Namespace) -> Iterator[Claim]:
    """The example of docs/reading_a_result.md."""
    block = re.search(r"```\n\$ (simulate [^\n]+)\n(.*?)```", (ROOT / "docs/reading_a_result.md").read_text(), re.S)
    assert block is not None
    command = [sys.executable, "-c", "from simulator.cli import main; main()", *block.group(1).split()[1:]]
    printed = plain(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    lines = block.group(2).splitlines()
    for line in lines[2:7]:  # the table; sentences may be broken elsewhere
        yield "docs/reading_a_result.md", plain(line), plain(line) if plain(line) in printed else "not printed"
    for part in (lines[:2], lines[7:]):
        sentences = plain(" ".join(part))
        yield "docs/reading_a_result.md", sentences, sentences if sentences in printed else printed


def load(args: argparse.Namespace) -> Iterator[Claim]:
    """The table by load, and the picture of it."""
    from policy_by_load import BASE, CONCURRENCIES, FIGURE, POLICIES, draw

    from simulator import Comparison, Load, load_trace, simulate
    from simulator.inputs import Acceptance

    table = {int(row[0]): row[1:] for row in rows(README, "| in flight | A:")}
    yield "loads of the table", ", ".join(map(str, table)), ", ".join(map(str, CONCURRENCIES))
    panels: dict[str, list[Comparison]] = {"dspark": [], "dspark:deepseek-v4-flash": []}
    for concurrency in args.loads or CONCURRENCIES:
        trace = load_trace(args.path["conversation"], limit=min(4000, 300 + 25 * concurrency))
        for half, drafter in enumerate(panels):
            asked = Load(trace, concurrency=concurrency)
            more = {"acceptance": Acceptance(drafter=drafter), "replications": 3, "jobs": args.jobs}
            panels[drafter].append(simulate(asked, PROFILE, POLICIES, **more))  # type: ignore[arg-type]
            found = panels[drafter][-1].results
            printed = [f"{found[0].figures[FIGURE]:,.0f}"]
            printed += [f"{100 * each.difference[FIGURE].mean:+.1f} %" for each in found[1:]]
            written = table[concurrency][5 * half : 5 * half + 5]
            for policy, one, other in zip((BASE, *POLICIES[1:]), written, printed, strict=True):
                yield f"{concurrency} in flight, {'AB'[half]}, {policy}", one, other
    if not args.loads:
        with tempfile.TemporaryDirectory() as folder:
            draw(panels, PROFILE, Path(folder) / "again.svg")
            again = (Path(folder) / "again.svg").read_text()
        old = (ROOT / "docs/policy_by_load.svg").read_text()
        found_words = "as drawn" if again == old else "other figures, or another Matplotlib"
        yield "docs/policy_by_load.svg", "as drawn", found_words


def tune(args: argparse.Namespace) -> Iterator[Claim]:
    """The table of `dspark tune`."""
    for row in rows(README, "| trace | no speculation | best fixed k"):
        name, trace = next(pair for pair in args.path.items() if pair[0] in row[0])
        if args.rows and name not in args.rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-c",
                "from sglang_dspark.cli import main; main()",
                "tune",
                "--trace",
                str(trace),
            ]
            command += [
                "--profile",
                PROFILE,
                "--concurrency",
                "64",
                "--json",
                *(["--jobs", str(args.jobs)] if args.jobs else []),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        document = json.loads(done.stdout)
        held = {each["what"]: each for each in document["held_out"]}
        fixed, rule = held["best fixed k"], held["SGLang's rule"]
        yield f"tune, {row[0]}: no speculation", row[1], f"{held['no speculation']['value']:,.0f}"
        said = f"{fixed['value']:,.0f} (`{fixed['candidate'].removeprefix('fixed:')}`"
        yield f"tune, {row[0]}: best fixed k", row[2].rstrip(")`"), said.rstrip(")`")
        yield f"tune, {row[0]}: SGLang's rule", row[3], f"{rule['value']:,.0f}"
        gain, meta = document["meta"]["gain"], document["meta"]
        if meta["better_than_baselines"]:
            numbers = f"{100 * gain['mean']:+.1f} % [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
            yield f"tune, {row[0]}: answer", row[4], row[4] if numbers in row[4] else document["answer"]
        else:
            yield f"tune, {row[0]}: answer", row[4], row[4] if row[4].startswith("keep") else document["answer"]


def regret(args: argparse.Namespace) -> Iterator[Claim]:
    """One row of docs/regret.md, and README's words about it."""
    case = "bias -1, temperature 2"
    command = [sys.executable, str(ROOT / "benchmarks/regret.py"), str(args.path["conversation"]), "--requests", "10"]
    command += ["--only", case, *(["--jobs", str(args.jobs)] if args.jobs else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    line = next(line for line in done.stdout.splitlines() if line.startswith(case))
    values = line.removeprefix(case).split()
    written = next(row for row in rows((ROOT / "docs/regret.md").read_text(), "| case |") if row[0] == case)
    yield f"docs/regret.md, {case}", " ".join(written[1:]), " ".join(values)
    heads = re.search(r"^\| case \|(.+)\|$", (ROOT / "docs/regret.md").read_text(), re.M)
    assert heads is not None
    by = dict(zip([head.strip(" `") for head in heads.group(1).split("|")], values, strict=True))
    told = r"confidences of bias -1 and temperature 2, (`hull` loses [\d.]+ % and `argmax` [\d.]+ %)"
    found = f"`hull` loses {float(by['hull']):.1f} % and `argmax` {float(by['argmax']):.1f} %"
    yield "README on wrong confidences", *match(plain(README), told, found)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Claim]]] = {
    "files": files,
    "result": result,
    "load": load,
    "tune": tune,
    "regret": regret,
}
WITHOUT_TRACES = ("files", "result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, or all")
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared", help="where the traces are")
    parser.add_argument(
        "--loads", type=lambda text: [int(each) for each in text.split(",")], help="of the table by load"
    )
    parser.add_argument("--rows", type=lambda text: text.split(","), help=f"of the table of tune: {', '.join(TRACES)}")
    parser.add_argument("--jobs", type=int, default=None)
    args = parser.parse_args()
    unknown = set(args.parts) - {*PARTS, "all"}
    if unknown:
        parser.error(f"part {', '.join(sorted(unknown))} is unknown, expected {', '.join(PARTS)}, or all")
    chosen = list(PARTS) if "all" in args.parts else args.parts or list(WITHOUT_TRACES)
    if set(chosen) - set(WITHOUT_TRACES):
        args.path = found_traces(args.traces, parser)
    wrong = 0
    for part in chosen:
        for what, written, found in PARTS[part](args):
            same = written == found
            wrong += not same
            print(
                f"{'same' if same else 'OTHER'}  {what}: {written}" + ("" if same else f"  (found: {found})"),
                flush=True,
            )
    print(f"{wrong} figures are others than written" if wrong else "all figures are as written")
    sys.exit(1 if wrong else 0)


def found_traces(folder: Path, parser: argparse.ArgumentParser) -> dict[str, Path]:
    found = {name: next(iter(sorted(folder.rglob(file))), None) for name, file in TRACES.items()}
    missing = [TRACES[name] for name, path in found.items() if path is None]
    if missing:
        parser.error(f"--traces {folder} does not hold {', '.join(missing)}")
    return {name: path for name, path in found.items() if path is not None}


if __name__ == "__main__":
    main()
