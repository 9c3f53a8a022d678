"""The reference pages, written from the code: `python docs/generate.py`; `--check` says which of them are out of date.

A page of docs/reference is what its function in `PAGES` returns; a part of another page, between two marks, what its
function in `PARTS` returns. Nothing is simulated but two small runs, whose figures are listed, and one step.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

DOCS = Path(__file__).parent
FOLDER = DOCS / "reference"
NOTE = "<!-- Written by `python docs/generate.py` from the code: change the code, not this page. -->"
PROFILE = "vllm-b300-dsv4-flash"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is out of date")
    args = parser.parse_args()
    wanted = pages()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    unknown = [path for path in FOLDER.glob("*.md") if path not in wanted]
    if args.check:
        for path in (*stale, *unknown):
            print(f"docs/{path.relative_to(DOCS)} is not what the code says: run python docs/generate.py")
        sys.exit(1 if stale or unknown else 0)
    FOLDER.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(wanted[path])
    for path in unknown:
        path.unlink()
    print(f"{len(wanted)} pages, {len(stale)} of them written anew")


def pages() -> dict[Path, str]:
    """Text of every page that the code decides, or a part of it."""
    found = {FOLDER / name: f"{page().strip()}\n\n{NOTE}\n" for name, page in PAGES.items()}
    for (name, mark), part in PARTS.items():
        text = (DOCS / name).read_text()
        begin, end = f"<!-- {mark} -->", "<!-- end -->"
        before, _, after = text.partition(begin)
        assert after, f"docs/{name} has no mark {begin}"
        found[DOCS / name] = f"{before}{begin}\n{part().strip()}\n{end}{after.partition(end)[2]}"
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that means nothing to Markdown; what stands in backticks stays."""
    parts = re.split(r"(``?[^`]+``?)", " ".join(text.split()))
    return "".join(
        f"`{part.strip('`')}`" if at % 2 else re.sub(r"([*<\[])", r"\\\1", part) for at, part in enumerate(parts)
    )


def code(text: str) -> str:
    return f"`{text}`" if text else ""


# Commands


def every_command() -> dict[str, Any]:
    """Every command by its words, as a user types them."""
    from sglang_dspark import cli
    from simulator import cli as simulate_cli

    found = {"simulate": typer.main.get_command(simulate_cli.app)}
    found |= _commands_below("dspark", typer.main.get_command(cli.app))
    return found


def _commands_below(words: str, command: Any) -> dict[str, Any]:
    inner = getattr(command, "commands", None)
    if not inner:
        return {words: command}
    return {
        name: each for word in sorted(inner) for name, each in _commands_below(f"{words} {word}", inner[word]).items()
    }


def commands_page() -> str:
    found = every_command()
    parts = [
        "# Commands",
        "What `--help` says. Every command takes `-h`; `simulate` and `dspark` take `--version` and "
        "`--install-completion`. Bad input is one sentence and exit status 2.",
        table(
            ["command", "what it does"],
            (
                [f"[`{words}`](#{words.replace(' ', '-')})", plain(_first_sentence(each))]
                for words, each in found.items()
            ),
        ),
    ]
    for words, each in found.items():
        parts += [f"## {words}", *_paragraphs(each.help or ""), *_options(words, each)]
    return "\n\n".join(parts)


def _first_sentence(command: Any) -> str:
    return " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())


def _paragraphs(text: str) -> list[str]:
    """A docstring's paragraphs; those that begin with a `\\b` are as they are."""
    out = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if "\b" in paragraph:
            out.append("```\n" + inspect.cleandoc("\n" + paragraph.split("\b\n")[-1]) + "\n```")
        else:
            out.append(plain(paragraph))
    return out


def _options(words: str, command: Any) -> list[str]:
    """A table a heading, as in the help."""
    context = command.make_context(words, [], resilient_parsing=True)
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is None or record[0].startswith(("--help", "-h", "--install", "--show")):
            continue
        is_argument = param.param_type_name == "argument"
        heading = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or "Options"
        sections.setdefault(heading, []).append(record)
    return [
        table([heading, ""], ([code(flag), plain(said)] for flag, said in records))
        for heading, records in sections.items()
    ]


# The server


class _Parser(argparse.ArgumentParser):
    """Keeps what is added to it, SGLang's flags aside."""


def server_page() -> str:
    from sglang_dspark.serving.base.steps import REASONS
    from sglang_dspark.serving.feedback.counters import Counters
    from sglang_dspark.serving.plugin.flags import add_flags

    parser = _Parser(add_help=False)
    add_flags(None, parser)
    rows = []
    for action in parser._actions:
        value = action.metavar or "|".join(action.choices or ()) or ("" if action.nargs == 0 else "VALUE")
        default = (
            ""
            if action.default in (None, False) or "Default" in (action.help or "")
            else f" Default: {action.default}."
        )
        rows.append([_flag(action.option_strings[0], value), plain((action.help or "") + default)])
    counted = [
        [code(name), kind, ", ".join(map(code, labels)), plain(text)] for name, kind, labels, text in prometheus()
    ]
    return "\n\n".join(
        [
            "# The server",
            "Flags of `python -m sglang.launch_server` beside SGLang's own. Any of them runs the sglang-dspark worker; "
            "with none of them SGLang's stays as it is.",
            table(["flag", ""], rows),
            "## Metrics in Prometheus",
            "With `--enable-metrics`, on the `/metrics` of the server. Labels are those of SGLang's own scheduler "
            "metrics (`model_name`, `engine_type`, `tp_rank`, ...), so that both join, and those below.",
            table(["metric", "kind", "labels", "what"], counted),
            "## Counters",
            "Under `dspark` in the internal states of `/server_info`, without `--enable-metrics` too. `dspark policy` "
            "and `GET /dspark/policy` show policy, ranks and faults.",
            plain(inspect.cleandoc(Counters.__doc__ or "")),
            ", ".join(code(name) for name in Counters().as_dict()) + ".",
            f"Reasons of a step (`steps_by_reason`, and the label `reason`): {', '.join(map(code, REASONS))}.",
        ]
    )


def _flag(name: str, value: str) -> str:
    """A flag and what it takes; a bar would end a table's cell."""
    return " ".join([code(name), " or ".join(map(code, value.split("|")))]).strip()


def prometheus() -> list[tuple[str, str, list[str], str]]:
    """(name, kind, own labels, text) of every metric, from the very code that makes them, without prometheus_client."""
    from sglang_dspark.serving.feedback.metrics import PrometheusObserver

    found: list[tuple[str, str, list[str], str]] = []

    class Made:
        def __init__(self, name: str, text: str, labels: list[str], **more: Any) -> None:
            kind = type(self).__name__.lower()
            found.append((f"{name}_total" if kind == "counter" else name, kind, labels, text))

        def labels(self, *values: Any) -> Made:
            return self

    stub = ModuleType("prometheus_client")
    stub.Counter, stub.Gauge = type("Counter", (Made,), {}), type("Gauge", (Made,), {})  # type: ignore[attr-defined]
    before = sys.modules.get("prometheus_client")
    sys.modules["prometheus_client"] = stub
    try:
        PrometheusObserver({})
    finally:
        sys.modules.pop("prometheus_client")
        if before is not None:
            sys.modules["prometheus_client"] = before
    return sorted(found)


# Policies, profiles, drafters


def policies_page() -> str:
    from sglang_dspark.cli.policies import described
    from sglang_dspark.policies import POLICIES

    parts = [
        "# Policies",
        "A policy is text, `NAME` or `NAME:parameter=value,...`, or a JSON file, in every command, on the server's "
        "command line and in `dspark policy`. [How it decides](../how_it_decides.md) says what the classes mean. "
        "Those that are not lossless run in the simulator only.",
    ]
    listed = [described(name) for name in POLICIES]
    parts.append(
        table(
            ["policy", "class", "lossless", ""],
            (
                [
                    f"[`{each['policy']}`](#{each['policy']})",
                    each["class"],
                    "yes" if each["lossless"] else "**no**",
                    plain(each["summary"]),
                ]
                for each in listed
            ),
        )
    )
    for each in listed:
        parts += [f"## {each['policy']}", plain(each["summary"])]
        if each["parameters"]:
            parts.append(
                table(
                    ["parameter", "default", "range", "meaning"],
                    (
                        [code(one["name"]), code(str(one["default"])), plain(one["expected"]), plain(one["meaning"])]
                        for one in each["parameters"]
                    ),
                )
            )
    return "\n\n".join(parts)


def profiles_page() -> str:
    from sglang_dspark.cost import TERMS, load_profile, profile_names
    from simulator.blocks.drafters import ALIASES, PUBLISHED
    from simulator.blocks.survival import accept_length

    models = {name: load_profile(name) for name in profile_names()}
    shorts = {each.name: short for short, each in ALIASES.items()}
    return "\n\n".join(
        [
            "# Profiles and drafters",
            "## Profiles that ship",
            "`--profile NAME`, or a file: ours, or SGLang's SPS table. Estimates were measured by nobody "
            "([how far they are off](../estimates.md)). `dspark profiles NAME` shows one in full.",
            table(
                ["profile", "", "hardware"],
                (
                    [
                        code(name),
                        "estimate" if model.is_estimate else "**measured**",
                        plain(str(model.meta.get("hardware", ""))),
                    ]
                    for name, model in models.items()
                ),
            ),
            "## Cost terms",
            "Beside its step times a profile gives these, or they are assumptions, which every result states. "
            "`--cost NAME=VALUE,...` replaces them.",
            table(
                ["term", "unit", "accepted", "meaning"],
                (
                    [code(name), plain(term.unit), f"{term.least:g} to {term.most:g}", plain(term.meaning)]
                    for name, term in TERMS.items()
                ),
            ),
            "## Drafters",
            "`--drafter NAME`: whose published acceptance is taken. `dspark drafters NAME` has positions and source.",
            table(
                ["drafter", "short", "gamma", "accept length by domain"],
                (
                    [
                        code(each.name),
                        code(shorts.get(each.name, "")),
                        str(each.gamma),
                        ", ".join(
                            f"{domain} {accept_length(values):.2f}" for domain, values in each.acceptance.items()
                        ),
                    ]
                    for each in PUBLISHED.values()
                ),
            ),
        ]
    )


# Figures of a run


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


# Trace formats


def traces_page() -> str:
    from simulator.traces import TRACE_FORMATS, formats, server_files

    described = _terms(formats.__doc__ or "") | _terms(server_files.__doc__ or "")
    missing = [name for name in TRACE_FORMATS if name not in described]
    assert not missing, f"the docstrings of simulator/traces do not describe {missing}"
    rows = []
    for name, reader in TRACE_FORMATS.items():
        unit = {None: "in the file", "s": "seconds", "ms": "milliseconds"}.get(reader.time_unit, str(reader.time_unit))
        rows.append([f"[`{name}`](#{name})", plain(reader.about), unit])
    rest = inspect.cleandoc(formats.__doc__ or "").split("\n\nAny of them", 1)[1]
    return "\n\n".join(
        [
            "# Trace formats",
            "`simulate --trace FILE` and `dspark tune --trace FILE` tell a file's format from its first line; "
            "`--format NAME` says it. A folder is read as the records of a server (`--speculative-dspark-record`). "
            "[Traces](../traces.md) says how to get one of your own traffic.",
            table(["format", "told by", "stamps without a unit of their own"], rows),
            *(part for name in TRACE_FORMATS for part in (f"## {name}", plain(described[name]))),
            "## What holds for all",
            *_list_or_paragraph("Any of them" + rest),
        ]
    )


def _terms(doc: str) -> dict[str, str]:
    """A docstring's definition list: names in the first column, what they are below them."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        if re.fullmatch(r"[a-z][a-z-]*(, [a-z][a-z-]*)*", line):
            names = line.split(", ")
            found |= dict.fromkeys(names, "")
        elif line.startswith("    ") and names:
            for name in names:
                found[name] += line + " "
        elif line:
            names = []
    return found


def _list_or_paragraph(text: str) -> list[str]:
    out = []
    for paragraph in text.split("\n\n"):
        items = re.split(r"(?:^|\n)- ", paragraph)
        out.append("\n".join(f"- {plain(item)}" for item in items if item) if len(items) > 1 else plain(paragraph))
    return out


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "server.md": server_page,
    "policies.md": policies_page,
    "profiles.md": profiles_page,
    "figures.md": figures_page,
    "traces.md": traces_page,
}


def one_decision() -> str:
    sys.path.insert(0, str(DOCS.parent / "benchmarks"))
    import one_decision as found

    return "\n".join(found.table(found.one_step()))


PARTS: dict[tuple[str, str], Callable[[], str]] = {("how_it_decides.md", "one decision"): one_decision}

if __name__ == "__main__":
    main()
