"""`GET` and `POST /dspark/policy` on SGLang's own application, under its admin authentication."""

from __future__ import annotations

import asyncio
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, policy_from_json, policy_to_json, policy_to_string
from sglang_dspark.serving.base.options import Resolved, check_policy
from sglang_dspark.serving.base.trial_plan import TrialPlan
from sglang_dspark.serving.control import acceptance, requests
from sglang_dspark.serving.control.switch import KEY

PATH = "/dspark/policy"

_served: tuple[Resolved, int] | None = None
_switching = asyncio.Lock()


def serve(resolved: Resolved, gamma: int) -> None:
    """Add the routes to SGLang's application in this process; `resolved` is what the server starts with."""
    global _served
    from sglang.srt.entrypoints import http_server
    from sglang.srt.utils.auth import AuthLevel, auth_level

    first = _served is None
    _served = (resolved, gamma)
    if first:
        requests.guard()
        acceptance.show()
        http_server.app.get(PATH)(auth_level(AuthLevel.ADMIN_OPTIONAL)(get_policy))
        http_server.app.post(PATH)(auth_level(AuthLevel.ADMIN_OPTIONAL)(post_policy))


def _manager() -> Any:
    from sglang.srt.entrypoints import http_server

    return http_server.get_global_state().tokenizer_manager


async def get_policy() -> Any:
    """The policy of every rank, with the decode step since which it decides."""
    from fastapi.responses import JSONResponse

    states = [state.get("dspark") for state in await _manager().get_internal_state()]
    return JSONResponse(_answer([state for state in states if state is not None]))


async def post_policy(body: dict[str, Any]) -> Any:
    """Switch to {"policy": TEXT} (or a policy object) on every rank or none; 400 with one sentence when refused."""
    from fastapi.responses import JSONResponse
    from sglang.srt.managers.io_struct import SetInternalStateReq

    try:
        text = policy_to_string(_checked(body))
        key = KEY + text + _trial(body)
    except InputError as error:
        return JSONResponse({"error": str(error)}, status_code=400)
    if _switching.locked():
        message = f"policy '{text}' was refused: another switch is under way, ask again when it is done"
        return JSONResponse({"error": message}, status_code=400)
    async with _switching:
        manager = _manager()
        # Every replica is asked before any of them switches; a replica answers for all ranks of its group.
        for ask_only in (0, 1):
            votes = await manager.set_internal_state(SetInternalStateReq(server_args={key: ask_only}))
            if not all(votes):
                refused = f"{votes.count(False)} of {len(votes)} replicas"
                message = f"policy '{text}' was refused by {refused}, see the server's log"
                return JSONResponse({"error": message}, status_code=400)
        return await get_policy()


def _checked(body: dict[str, Any]) -> Policy:
    if _served is None:
        raise InputError(
            "this server was started without the DSpark flags: SGLang's own worker has no policy to switch"
        )
    given = body.get("policy")
    if not isinstance(given, str | dict) or not set(body) <= {"policy", "trial_s", "tpot_ms"}:
        raise InputError(
            'expected a body such as {"policy": "hull:fill=true"}, on trial with "trial_s": 600 and maybe "tpot_ms": 50'
        )
    policy = policy_from_json(given)
    resolved, gamma = _served
    check_policy(policy, resolved.schedule_of(policy, resolved.schedule), resolved.cost, gamma)
    return policy


def _trial(body: dict[str, Any]) -> str:
    """The trial of a body as the key has it, empty without one."""
    values = {name: body.get(name) for name in ("trial_s", "tpot_ms")}
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{name}={value!r} is refused, expected a number")
    if values["trial_s"] is None:
        if values["tpot_ms"] is not None:
            raise InputError("tpot_ms does nothing without trial_s")
        return ""
    plan = TrialPlan(float(values["trial_s"]), None if values["tpot_ms"] is None else float(values["tpot_ms"]))
    return f"@{plan.seconds:g},{plan.tpot_ms or 0:g}"


def _answer(states: list[dict[str, Any]]) -> dict[str, Any]:
    """One view of all replicas; `ranks` lists every rank with its policy. DP-attention ranks come in their order."""
    if not states:
        return {"error": "no rank runs the DSpark worker"}
    states = sorted(states, key=lambda state: state.get("dp_rank") or 0)
    first = states[0]
    ranks = [
        {"replica": replica, "rank": rank, **view}
        for replica, state in enumerate(states)
        for rank, view in enumerate(state["ranks"])
    ]
    kept = ("policy", "class", "lossless", "since_step", "schedule", "mode", "gamma", "profile", "shadow", "explore")
    policy = policy_from_json(first["policy"])
    faults = [
        {"replica": rank["replica"], "rank": rank["rank"], **fault} for rank in ranks for fault in rank.pop("faults")
    ]
    shown = {
        "calibration": first["calibration"],
        "costs": first["costs"],
        "trial": first["trial"],
        "faults": faults,
        "recording": first["recording"],
        "kernels": first["kernels"],
        "decisions": first["decisions"],
    }
    return {key: first[key] for key in kept} | shown | {"parameters": policy_to_json(policy), "ranks": ranks}
