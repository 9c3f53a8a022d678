"""`dspark policy --url URL [NEW]`: show or switch the policy of a running server."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sglang_dspark.cli.app import AdminApiKey, ApiKey, app
from sglang_dspark.keys import Keys


@app.command("policy")
def policy(
    new: Annotated[str | None, typer.Argument(help="Policy to switch to: NAME[:k=v,..] or FILE.json.")] = None,
    url: Annotated[str, typer.Option(help="The server, such as http://localhost:30000.")] = "http://localhost:30000",
    api_key: ApiKey = None,
    admin_api_key: AdminApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")] = False,
) -> None:
    """Show the verification policy of a running server, or switch it between two steps."""
    from sglang_dspark.live.client import POLICY_PATH, Server

    server = Server(url, Keys.given(api_key, admin_api_key))
    if new is None:
        answer = server.get(POLICY_PATH)
    else:
        from sglang_dspark.policies import make_policy, policy_to_json

        answer = server.post(POLICY_PATH, {"policy": policy_to_json(make_policy(new))})
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    print(f"policy    {answer['policy']}  ({answer['class']}, {'lossless' if answer['lossless'] else 'NOT lossless'})")
    print(f"schedule  {answer['schedule']}, mode {answer['mode']}, gamma {answer['gamma']}")
    print(f"profile   {answer['profile'] or 'none'}")
    if answer.get("shadow"):
        print(f"shadow    {answer['shadow']}")
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
