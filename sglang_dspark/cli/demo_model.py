"""`dspark demo-model`: train the tiny target and draft pair, or reuse the one that is there."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from sglang_dspark.cli.app import Json, app
from sglang_dspark.cores import available_cores
from sglang_dspark.errors import InputError


def _summary(manifest: dict) -> str:
    """A few lines that say what the pair can do."""
    lines = []
    for name, stats in manifest["acceptance"].items():
        by_domain = ", ".join(
            f"{domain} {length:.2f}"
            for domain, length in stats["accept_length_by_domain"].items()
            if length is not None
        )
        area = stats["survival_auc_mean"]
        lines.append(
            f"{name}  accept length {stats['accept_length']:.2f} ({by_domain})"
            + ("" if area is None else f", survival AUC {area:.2f}")
        )
    lines.append(
        f"weights {manifest['weights_sha256'][:16]}, made in {manifest['seconds']['total']:.0f} s "
        f"on {manifest['request']['threads']} threads"
    )
    return "\n".join(lines)


def _say(what: str, out: Path, manifest: dict, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"out": str(out), **manifest}, indent=1))
        return
    typer.echo(what)
    typer.echo(_summary(manifest))


@app.command("demo-model")
def demo_model(
    out: Annotated[Path, typer.Option(help="Folder of the pair: target/, draft/, prompts/, demo.json.")],
    size: Annotated[
        str, typer.Option(help="default, ci (smaller, sooner) or micro (untrained, for tests).")
    ] = "default",
    head: Annotated[str, typer.Option(help="Markov head: vanilla, gated or rnn.")] = "vanilla",
    gamma: Annotated[int, typer.Option(help="Draft block size.")] = 7,
    seed: Annotated[int, typer.Option(help="Seed of weights and windows.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Compute threads (default: the cores, at most 4).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train even if the folder holds this very pair.")] = False,
    as_json: Json = False,
) -> None:
    """Train a tiny Qwen3 target and DSpark draft on this machine's CPU, in minutes, for trying and testing the server.

    It learns Python's standard library and generated JSON, CSV and logs. A pair of the same request is reused.
    """
    # Threads that spin while they wait made a training step 20 times slower on busy cores; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(f"demo-model needs {error.name}; install sglang-dspark[serve]") from None
    from sglang_dspark.demo.build import build, read_manifest, stale_reason
    from sglang_dspark.demo.progress import reporting
    from sglang_dspark.demo.recipe import Request

    request = Request(size, head, gamma, seed, threads if threads is not None else min(4, available_cores()))
    manifest = read_manifest(out)
    if manifest is not None and not force:
        reason = stale_reason(out, manifest, request)
        if reason is None:
            _say(f"{out} already holds this pair (--force trains it again)", out, manifest, as_json=as_json)
            return
        typer.echo(f"training again, {out} holds another pair: {reason}", err=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwind, so that the unfinished folder is removed
    try:
        with reporting() as report:
            manifest = build(out, request, report)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from None
    _say(f"wrote {out}", out, manifest, as_json=as_json)
