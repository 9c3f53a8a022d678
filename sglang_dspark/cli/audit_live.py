"""`dspark audit live`: does a running server sample from the target's law? And what bias a policy would have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn

from sglang_dspark.cli.app import URL, AdminApiKey, ApiKey, audit_app
from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys

if TYPE_CHECKING:
    from sglang_dspark.audit.live.prompts import Prompt, Tokenizer
    from sglang_dspark.audit.live.settings import AuditSettings

_NEEDED = ("httpx", "torch", "transformers")


@audit_app.command("live")
def live(
    target: Annotated[Path, typer.Option(help="Folder of the served target model (transformers).")],
    prompts: Annotated[
        Path, typer.Option(help='JSON Lines: {"prompt": TEXT}, {"turns": [TEXT]} or {"input_ids": [..]}.')
    ],
    url: Annotated[str | None, typer.Option(help=f"Server to audit (default: {URL}).")] = None,
    skip: Annotated[int, typer.Option(help="Sampled tokens before the audited ones.")] = 4,
    tokens: Annotated[int, typer.Option(help="Audited tokens of each continuation.")] = 3,
    samples: Annotated[int, typer.Option(help="Continuations of each prompt.")] = 2000,
    concurrency: Annotated[int, typer.Option(help="Audited requests at a time.")] = 8,
    background: Annotated[int, typer.Option(help="Long-running requests kept in decode beside them.")] = 4,
    background_prompts: Annotated[
        Path | None, typer.Option(help="Prompts of the background (default: the audited ones).")
    ] = None,
    background_tokens: Annotated[int, typer.Option(help="Most tokens of a background request.")] = 512,
    limit: Annotated[int, typer.Option(help="Prompts of the file to use.")] = 4,
    greedy_tokens: Annotated[int, typer.Option(help="Tokens of each prompt's greedy continuation.")] = 64,
    control: Annotated[
        int, typer.Option(help="Continuations of each prompt whose log-probabilities are compared.")
    ] = 8,
    alpha: Annotated[float, typer.Option(help="Chance that a lossless server is called biased.")] = 0.001,
    detect: Annotated[float, typer.Option(help="Total variation that must be visible for `lossless`.")] = 0.05,
    least_cut: Annotated[float, typer.Option(help="Share of audited blocks that decisions must have cut.")] = 0.30,
    device: Annotated[str, typer.Option(help="Where the target runs: auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="The target's dtype: float32, bfloat16 or float16.")] = "float32",
    api_key: ApiKey = None,
    admin_api_key: AdminApiKey = None,
    across: Annotated[
        list[str] | None, typer.Option(help="Switch through these policies meanwhile: give it twice or more.")
    ] = None,
    every: Annotated[float | None, typer.Option(help="Seconds between switches (with --across; default: 1).")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds that one request may take.")] = 600.0,
    predict: Annotated[
        str | None, typer.Option(help="Policy whose bias to predict instead; no server is asked.")
    ] = None,
    draft: Annotated[Path | None, typer.Option(help="Folder of the DSpark draft (with --predict).")] = None,
    profile: Annotated[str | None, typer.Option(help="Step-cost profile, name or file (with --predict).")] = None,
    simulated: Annotated[int, typer.Option(help="Simulated requests of each prompt (with --predict).")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the audit's own draws.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Test a running server's samples against the target's exact law, beside long-running requests.

    Exit status: 0 lossless, 1 biased, 3 inconclusive, 2 bad input. With --predict POLICY: the bias that POLICY would
    have on these prompts with --background + --concurrency requests in the batch, and the samples that see it.
    """
    _check_installed()
    if url is not None and predict is not None:
        raise InputError("expected either --url URL to audit a server or --predict POLICY to predict a bias")
    from sglang_dspark.audit.live.settings import AuditSettings

    settings = AuditSettings(
        skip=skip,
        tokens=tokens,
        samples=samples,
        concurrency=concurrency,
        background=background,
        background_tokens=background_tokens,
        greedy_tokens=greedy_tokens,
        control=control,
        alpha=alpha,
        detect=detect,
        least_cut=least_cut,
        seed=seed,
    )
    files = _PromptFiles(prompts, background_prompts, limit)
    _check_across(across, every, predict)
    if predict is not None:
        _predict(predict, target, draft, profile, files, settings, simulated, json)
        return
    if draft is not None or profile is not None:
        raise InputError("--draft and --profile belong to --predict; a live server has its own")
    if not timeout_s > 0:
        raise InputError(f"--timeout {timeout_s} is refused, expected a positive number of seconds")
    served = _Served(
        url or URL, Keys.given(api_key, admin_api_key), timeout_s, across or [], 1.0 if every is None else every
    )
    _audit(served, target, device, dtype, files, settings, json)


@dataclass(frozen=True)
class _Served:
    """The server to audit, and the policies that it is switched through meanwhile."""

    url: str
    keys: Keys
    timeout_s: float
    across: list[str]
    every_s: float


@dataclass(frozen=True)
class _PromptFiles:
    """Files of audited and background prompts, and how many of each to use."""

    audited: Path
    background: Path | None
    limit: int

    def read(self, tokenizer: Tokenizer) -> tuple[list[Prompt], list[Prompt]]:
        """Audited prompts, and those of the background (the same where no file is given)."""
        from sglang_dspark.audit.live.prompts import read_prompts

        audited = read_prompts(self.audited, self.limit, tokenizer)
        return audited, audited if self.background is None else read_prompts(self.background, self.limit, tokenizer)


def _check_across(across: list[str] | None, every: float | None, predict: str | None) -> None:
    from sglang_dspark.policies import make_policy, policy_to_string

    if across is None:
        if every is not None:
            raise InputError(f"--every {every:g} does nothing without --across")
        return
    if predict is not None:
        raise InputError("--across switches a live server; it does not go with --predict")
    if len({policy_to_string(make_policy(text)) for text in across}) < 2:
        raise InputError(f"--across was given {', '.join(across)}: expected at least two different policies")


def _audit(
    served: _Served,
    folder: Path,
    device: str,
    dtype: str,
    files: _PromptFiles,
    settings: AuditSettings,
    json: bool,
) -> None:
    from sglang_dspark.audit.live.audit import audit_server
    from sglang_dspark.audit.live.client import Server
    from sglang_dspark.audit.live.report import print_report
    from sglang_dspark.audit.live.target import ExactTarget
    from sglang_dspark.live.client import Server as Switchable
    from sglang_dspark.live.rotation import rotating

    server = Server(served.url, served.keys, served.timeout_s)
    target = ExactTarget.load(folder, device, dtype)
    prompts, beside = files.read(target.tokenizer)
    turning = rotating(Switchable(served.url, served.keys), served.across, served.every_s)
    with _bars() as progress, turning if served.across else nullcontext():
        report = audit_server(server, target, prompts, beside, settings, progress, served.across)
    if json:
        _print_json(report.as_json())
    else:
        print_report(Console(), report)
    raise typer.Exit(report.exit_status)


def _predict(
    text: str,
    folder: Path,
    draft: Path | None,
    profile: str | None,
    files: _PromptFiles,
    settings: AuditSettings,
    simulated: int,
    json: bool,
) -> None:
    from sglang_dspark.audit.live.pair import load_models
    from sglang_dspark.audit.live.prediction import predict
    from sglang_dspark.audit.live.report import print_predictions
    from sglang_dspark.cost import load_profile
    from sglang_dspark.policies import make_policy, policy_to_string

    if draft is None:
        raise InputError("--predict needs the draft model too: give --draft DIR")
    if simulated < 10:
        raise InputError(f"--simulated {simulated} is refused, expected at least 10")
    policy = make_policy(text)
    cost = None if profile is None else load_profile(profile)
    pair = load_models(folder, draft)
    prompts, beside = files.read(pair.tokenizer)
    with _bars() as progress:
        found = predict(
            pair,
            policy,
            cost,
            prompts,
            beside,
            settings,
            simulated,
            lambda done, total: progress("simulating", done, total),
        )
    if json:
        _print_json({"policy": policy_to_string(policy), "predictions": [dict(p.__dict__) for p in found]})
    else:
        print_predictions(Console(), policy_to_string(policy), found)


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"audit live needs {', '.join(missing)}; install sglang-dspark[audit]")


def _print_json(document: object) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """One progress bar a stage, on stderr."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield progress
