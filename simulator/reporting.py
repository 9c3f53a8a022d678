"""From a comparison or a sweep to the page of `--report`."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from sglang_dspark.workers import Hire
from simulator.engine.run import Setting
from simulator.report.document import document
from simulator.report.page import write_page
from simulator.report.story import Entry, LoadRuns, Story, count_runs
from simulator.results.answer import answer, choose, is_baseline, load_words
from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.servers import flag_lines
from simulator.results.verdict import overload_words
from simulator.run_store import digest
from simulator.sweep import BEST, Sweep

Told = Callable[[int, int], None]


def write_report(path: Path, story: Story, jobs: int | Hire | None = None, on_progress: Told | None = None) -> None:
    """Count one run of every policy at every load, and write the page. Errors: InputError."""
    write_page(path, document(story, count_runs(story, jobs, on_progress)))


def story_of_comparison(
    setting: Setting, comparison: Comparison, files: Sequence[str | Path | None], notes: Sequence[str] = ()
) -> Story:
    """One load. files: those that the command read. notes: what the caller has to say."""
    where = load_words(comparison.setting)
    entries = tuple(_entry(setting, result.policy, result) for result in comparison.results)
    load = _load_runs(setting, comparison, entries, {})
    flag = "Not asked for: --sensitivity varies one assumption at a time and says which of them turns the verdict."
    return Story(
        title=f"Which verification policy {where}?",
        about=_about(comparison),
        answer=sentence(answer(comparison)),
        sure=_sure(comparison),
        words=(),
        judged=comparison.judged.words,
        unit=_unit(comparison),
        loads=(load,),
        shown=0,
        warnings=_warnings([comparison], notes),
        assumptions=tuple(each.text for each in comparison.assumptions),
        made=made([setting], files, comparison.setting["replications"]),
        sensitivity=comparison.sensitivity,
        extra={"no_sensitivity": flag},
    )


def story_of_sweep(
    settings: Sequence[Setting], sweep: Sweep, files: Sequence[str | Path | None], notes: Sequence[str] = ()
) -> Story:
    """Several loads; the one with the largest gain is shown first."""
    loads = []
    for number, (setting, comparison) in enumerate(zip(settings, sweep.comparisons, strict=True)):
        fixed = sweep.fixed[number]
        found = {row: sweep.result(row, number) for row in sweep.rows}
        if fixed in found and found[fixed] is None:  # this length is the best one here: it stands under both names
            found[fixed] = found.get(BEST)
        entries = tuple(_entry(setting, row, result) for row, result in found.items() if result is not None)
        loads.append(_load_runs(setting, comparison, entries, {} if fixed is None else {fixed: BEST}))
    gains = [choice.gain.mean if choice is not None else -math.inf for choice in sweep.choices]
    shown = gains.index(max(gains))
    first = sweep.comparisons[shown]
    words = [*sweep.words(), *([] if sweep.schedule is None else [f"read off it: --policy {sweep.schedule}"])]
    flag = "A sweep has none: give one load and --sensitivity to see which assumption turns the verdict there."
    return Story(
        title="Which verification policy, from which load on?",
        about=_about(first),
        answer=sentence(sweep.summary()),
        sure=_sure(first),
        words=tuple(map(sentence, words)),
        judged=first.judged.words,
        unit=_unit(first),
        loads=tuple(loads),
        shown=shown,
        warnings=_warnings(sweep.comparisons, notes),
        assumptions=tuple(dict.fromkeys(each.text for one in sweep.comparisons for each in one.assumptions)),
        made=made(settings, files, first.setting["replications"]),
        extra={"no_sensitivity": flag},
    )


def made(settings: Sequence[Setting], files: Sequence[str | Path | None], replications: int) -> dict[str, Any]:
    """The command, and what it read: names with digests, so that a reader can tell whether his are the same."""
    first = settings[0]
    inputs = {
        "trace": f"{first.trace.source}, {len(first.trace):,} requests",
        "step costs": first.cost.name,
        **({} if first.belief is first.cost else {"policies believe": first.belief.name}),
        "acceptance": f"{first.drafter.name}: {first.drafter.origin.text}",
        "seed": first.seed,
        "replications": replications,
        "digest of all inputs": digest(list(settings)),
        **{f"SHA-256 of {name}": found for name, found in map(_hashed, files) if found},
    }
    return {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "inputs": inputs}


def entry_name(result: PolicyResult) -> str:
    """The policy, marked where it is not lossless."""
    return result.policy if result.lossless else f"{result.policy} (not lossless)"


def _entry(setting: Setting, row: str, result: PolicyResult) -> Entry:
    name = BEST if row == BEST else entry_name(result)
    label = result.policy if row == BEST else ""
    return Entry(name, make_policy(result.policy), setting, result.replications, label)


def _load_runs(
    setting: Setting, comparison: Comparison, entries: tuple[Entry, ...], renamed: dict[str, str]
) -> LoadRuns:
    """renamed: what a policy is called on the page."""
    by, choice = comparison.judged, choose(comparison)
    baselines = [result for result in comparison.lossless if is_baseline(result.policy)]
    base = by.ranked(baselines)[0].policy if baselines else None
    best = choice.policy if choice is not None else by.ranked(comparison.lossless)[0].policy
    closed = setting.concurrency is not None
    size = float(setting.concurrency if setting.concurrency is not None else _rate(setting, comparison))
    return LoadRuns(
        load=f"{setting.concurrency}" if closed else f"{size:g}",
        size=size,
        entries=entries,
        base=None if base is None else renamed.get(base, base),
        best=renamed.get(best, best),
        figure=by.figure,
        more=by.more_is_better,
        windows=comparison.setting["windows"],
    )


def _rate(setting: Setting, comparison: Comparison) -> float:
    rate = setting.request_rate or comparison.results[0].figures["offered_request_rate"]
    return rate if math.isfinite(rate) else float(len(setting.trace))


def _unit(comparison: Comparison) -> str:
    return "requests in flight" if comparison.setting["loop"] == "closed" else "requests a second"


def _about(comparison: Comparison) -> str:
    setting = comparison.setting
    return (
        f"{setting['requests']:,} requests of {setting['trace']}; step costs of {setting['profile']}, drafter "
        f"{setting['drafter']} with blocks of {setting['gamma']}"
    )


def _sure(comparison: Comparison) -> tuple[str, ...]:
    """How far to trust the answer."""
    setting = comparison.setting
    lossy = [result.policy for result in comparison.results if not result.lossless]
    said = [_interval_words(setting), f"step costs: {setting['profile_provenance']}"]
    said += [] if comparison.surcharge is None else [str(comparison.surcharge)]
    said += [] if comparison.sensitivity is None else [f"sensitivity: {comparison.sensitivity.lines()[-1]}"]
    said.append(
        f"not lossless, for research alone: {', '.join(lossy)}; under all others the output stays the target model's"
        if lossy
        else "every policy here is lossless: what the server answers follows the target model's law exactly"
    )
    said += flag_lines(setting)
    return tuple(map(sentence, said))


def _interval_words(setting: dict[str, Any]) -> str:
    windows, draws = setting["windows"], setting["replications"]
    if draws == 1:
        return "one set of draws: no interval, so a small gain says nothing (--replications 5)"
    what = (
        f"{draws} sets of draws on the same requests"
        if windows == 1
        else f"{windows} parts of the trace and their draws"
    )
    more = "; other requests may differ more (--windows 5 looks at parts of the trace)" if windows == 1 else ""
    return f"the brackets are a 95 % interval over {what}{more}"


def _warnings(comparisons: Sequence[Comparison], notes: Sequence[str]) -> tuple[str, ...]:
    said = [text for each in comparisons for text in (*filter(None, map(overload_words, each.results)), *each.warnings)]
    trace = [f"trace: {note}" for note in comparisons[0].setting["trace_notes"] if note.startswith("warning")]
    return tuple(map(sentence, dict.fromkeys([*said, *trace, *notes])))


def sentence(text: str) -> str:
    """With a capital and a stop; policies and flags keep theirs."""
    first = text.split(" ", 1)[0]
    text = text if ":" in first.rstrip(":") or first.startswith("-") else text[:1].upper() + text[1:]
    text = text.replace(" %", "\u00a0%")
    last = text.rsplit(" ", 1)[-1]
    is_copied = "=" in last or last.startswith("--")  # a policy or a flag: what is copied has no stop
    return text if is_copied or text.endswith((".", "!", "?")) else f"{text}."


def _hashed(path: str | Path | None) -> tuple[str, str]:
    try:
        if path is None or not Path(path).is_file():
            return "", ""
        return str(path), sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
