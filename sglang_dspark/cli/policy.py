"""`dspark policy --url URL [NEW]`: show or switch the policy of a running server."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sglang_dspark.cli.app import URL, AdminApiKey, ApiKey, Url, app
from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys


@app.command("policy")
def policy(
    new: Annotated[str | None, typer.Argument(help="Policy to switch to: NAME[:k=v,..] or FILE.json.")] = None,
    trial: Annotated[
        str | None, typer.Option(help="Go back by itself if it is worse: how long to try, such as 10m or 90s.")
    ] = None,
    tpot_ms: Annotated[
        float | None, typer.Option(help="With --trial: the mean time per output token [ms] to keep.")
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    admin_api_key: AdminApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")] = False,
) -> None:
    """Show the verification policy of a running server, or switch it between two steps."""
    from sglang_dspark.live.client import POLICY_PATH, Server

    if new is None and (trial is not None or tpot_ms is not None):
        raise InputError("--trial and --tpot-ms do nothing without a policy to switch to")
    server = Server(url, Keys.given(api_key, admin_api_key))
    if new is None:
        answer = server.get(POLICY_PATH)
    else:
        from sglang_dspark.policies import make_policy, policy_to_json

        body: dict[str, Any] = {"policy": policy_to_json(make_policy(new))}
        if trial is not None:
            body["trial_s"] = _seconds(trial)
        if tpot_ms is not None:
            body["tpot_ms"] = tpot_ms
        answer = server.post(POLICY_PATH, body)
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    print(f"policy    {answer['policy']}  ({answer['class']}, {'lossless' if answer['lossless'] else 'NOT lossless'})")
    print(f"schedule  {answer['schedule']}, mode {answer['mode']}, gamma {answer['gamma']}")
    print(f"profile   {answer['profile'] or 'none'}")
    if answer.get("decisions"):
        print(f"decisions {answer['decisions']}")
    if answer.get("shadow"):
        print(f"shadow    {answer['shadow']}")
    learned = answer.get("calibration")
    if learned:
        print(f"learned   logit c' = {learned['slope']:.2f} logit c {learned['shift']:+.2f}")
    if answer.get("costs"):
        ratios = ", ".join(f"{tokens}: {ratio:.2f}" for tokens, ratio in answer["costs"].items())
        print(f"costs     measured over believed step time by executed tokens: {ratios}")
    if answer.get("trial"):
        print(f"trial     {_said(answer['trial'])}")
    recording = answer.get("recording")
    if recording:
        stalled = f", stands still: {recording['problem']}" if recording["stalled"] else ""
        print(f"records   {recording['written']} written, {recording['dropped']} dropped{stalled}")
    for fault in answer.get("faults", ()):
        where = f"replica {fault['replica']} rank {fault['rank']}"
        print(f"FAULT     {where}: {fault['what']} failed {fault['count']} time(s): {fault['first']}")
    for rank in answer["ranks"]:
        where = f"replica {rank['replica']} rank {rank['rank']}"
        print(f"{where}: {rank['policy']} since decode step {rank['since_step']}")


def _seconds(text: str) -> float:
    """90, 90s, 10m or 1h in seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in "smh" and text else (text, "s")
    try:
        return float(number) * {"s": 1.0, "m": 60.0, "h": 3600.0}[unit]
    except ValueError as error:
        raise InputError(f"--trial {text} is refused, expected a time such as 90s, 10m or 1h") from error


def _said(trial: dict[str, Any]) -> str:
    measured = "nothing compared yet"
    if trial["gain"] is not None:
        measured = f"{100 * trial['gain']:+.1f} +- {100 * trial['gain_error']:.1f} % tokens/s at like load"
    if trial["verdict"] == "running":
        return f"{trial['policy']} after {trial['previous']}, {trial['left_s']:.0f} s left: {measured}"
    return f"{trial['policy']} {trial['verdict']}: {trial['reason']} ({measured})"
