"""`dspark policy --url URL [NEW]`: show or switch the policy of a running server."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from sglang_dspark.cli.app import URL, Url, app
from sglang_dspark.errors import InputError

_TIMEOUT_S = 30.0


@app.command("policy")
def policy(
    new: Annotated[str | None, typer.Argument(help="Policy to switch to: NAME[:k=v,..] or FILE.json.")] = None,
    url: Url = URL,
    api_key: Annotated[
        str | None, typer.Option(help="SGLang's admin key (default: SGLANG_ADMIN_API_KEY).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")] = False,
) -> None:
    """Show the verification policy of a running server, or switch it between two steps."""
    body = None
    if new is not None:
        from sglang_dspark.policies import make_policy, policy_to_json

        body = {"policy": policy_to_json(make_policy(new))}
    answer = _request(url, body, api_key or os.environ.get("SGLANG_ADMIN_API_KEY"))
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    print(f"policy    {answer['policy']}  ({answer['class']}, {'lossless' if answer['lossless'] else 'NOT lossless'})")
    print(f"schedule  {answer['schedule']}, mode {answer['mode']}, gamma {answer['gamma']}")
    print(f"profile   {answer['profile'] or 'none'}")
    if answer.get("shadow"):
        print(f"shadow    {answer['shadow']}")
    for rank in answer["ranks"]:
        where = f"replica {rank['replica']} rank {rank['rank']}"
        print(f"{where}: {rank['policy']} since decode step {rank['since_step']}")


def _request(url: str, body: dict[str, Any] | None, api_key: str | None) -> dict[str, Any]:
    """GET, or POST with a body; InputError tells what the server said."""
    import urllib.error
    import urllib.request

    target = url.rstrip("/") + "/dspark/policy"
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(target, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise InputError(f"{target} answered {error.code}: {_sentence(error)}") from error
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise InputError(f"{target} cannot be reached: {getattr(error, 'reason', error)}") from error


def _sentence(error: Any) -> str:
    if error.code == 404:
        return "this server runs without the DSpark flags"
    if error.code in (401, 403):
        return "give the server's admin key with --api-key"
    try:
        answer = json.load(error)
        return str(answer.get("error", answer))
    except ValueError:
        return str(error.reason)
