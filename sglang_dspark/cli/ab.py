"""`dspark ab`: alternate two policies on a running server's own traffic and name the one to keep."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from sglang_dspark.cli.app import URL, AdminApiKey, ApiKey, Url, app
from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys


@app.command("ab")
def ab(
    policy: Annotated[list[str], typer.Option(help="The two policies: give it twice, the present one first.")],
    url: Url = URL,
    pairs: Annotated[int, typer.Option(min=2, max=1000, help="Pairs of blocks at most.")] = 12,
    block: Annotated[float, typer.Option(min=1.0, help="Seconds of a block.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of the order within pairs.")] = 0,
    apply: Annotated[bool, typer.Option("--apply", help="Switch the server to the winner, if there is one.")] = False,
    api_key: ApiKey = None,
    admin_api_key: AdminApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two policies on live traffic by committed tokens per second of decode steps, in alternating blocks.

    Requests go on meanwhile; the server gets its policy back unless --apply is given and one of the two wins.
    """
    from rich.console import Console

    from sglang_dspark.live.ab import Block, compare_live
    from sglang_dspark.live.client import Server
    from sglang_dspark.policies import make_policy, policy_to_string

    if len(policy) != 2:
        raise InputError(f"--policy was given {len(policy)} time(s), expected two policies")
    first, second = (policy_to_string(make_policy(text)) for text in policy)
    if first == second:
        raise InputError(f"both policies are {first}, expected two different ones")
    server = Server(url, Keys.given(api_key, admin_api_key))
    progress = Console(stderr=True)

    def report(found: Block) -> None:
        batch = found.requests / found.steps
        line = f"{found.policy}: {found.rate:.1f} tokens/s over {found.steps} steps, batch {batch:.1f}"
        progress.print(line, highlight=False)

    verdict = compare_live(server, first, second, pairs=pairs, block_s=block, seed=seed, on_block=report)
    if apply and verdict.keep is not None:
        server.switch(verdict.keep)
    rates = verdict.rates
    if as_json:
        document = {
            "a": verdict.a,
            "b": verdict.b,
            "pairs": len(verdict.pairs),
            "gain": verdict.gain,
            "low": verdict.low,
            "high": verdict.high,
            "noise": verdict.noise,
            "keep": verdict.keep,
            "verdict": verdict.sentence(),
            "tokens_per_decode_second": rates,
            "stopped_early": verdict.stopped_early,
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
        return
    early = ", stopped early" if verdict.stopped_early else ""
    typer.echo(f"A {verdict.a}: {rates[0]:.1f} tokens per decode second")
    typer.echo(f"B {verdict.b}: {rates[1]:.1f} tokens per decode second")
    typer.echo(
        f"gain of B {verdict.gain:+.1%} (95 % interval {verdict.low:+.1%} to {verdict.high:+.1%}; "
        f"{len(verdict.pairs)} pairs{early})"
    )
    typer.echo(verdict.sentence())
