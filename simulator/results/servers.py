"""What a comparison says of the servers that it simulated: limits, KV capacity, graphs, the flags that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_dspark.cost import Assumption
from sglang_dspark.policies import Policy
from simulator.engine.run import Setting
from simulator.engine.server import Server


def servers_of(setting: Setting, policies: Sequence[Policy]) -> list[Server]:
    """The servers that the policies run on, at most two: that of policies that draft, that of policy none."""
    return list(dict.fromkeys(setting.server(policy) for policy in policies))


def stated_servers(setting: Setting, policies: Sequence[Policy]) -> dict[str, Any]:
    """Plain values for reports: those of the first policy's server, and every server by its kind."""
    found = servers_of(setting, policies)
    plain = [
        {
            "max_running_requests": server.max_running_requests,
            "chunked_prefill_size": server.chunked_prefill_size,
            "kv_tokens": server.kv_tokens,
            "default_limit": server.default_limit,
            "free_slots_awaited": server.free_slots,
            "captured_batches": None if server.batches is None else list(server.batches),
        }
        for server in found
    ]
    return {
        **{key: plain[0][key] for key in ("max_running_requests", "chunked_prefill_size", "kv_tokens")},
        "graphs": setting.graphs if isinstance(setting.graphs, str) else list(setting.graphs),
        "servers": {_kind(server): values for server, values in zip(found, plain, strict=True)},
        "server_flags": server_flags(found),
    }


def assumed_of_servers(setting: Setting, policies: Sequence[Policy]) -> list[Assumption]:
    """What nobody gave, and so is as SGLang resolves it; and whose graphs are executed, whoever gave them."""
    out, found = [], servers_of(setting, policies)
    for server in found:
        of = "" if len(found) == 1 else f" of {_kind(server)}"
        out.append(_graphs(setting, server, of))
        if server.default_limit is not None:
            out.append(_limit(setting, server, of))
    if setting.engine.chunked_prefill_size is None and setting.engine.prefill_elsewhere_s is None:
        why = f"SGLang's default: {setting.machine.words.split(', TP')[0]}"
        chunk = found[0].chunked_prefill_size
        out.append(Assumption("chunked_prefill_size", chunk, "tokens", why, f"chunked_prefill_size = {chunk}"))
    return [*out, *_max_tokens(setting)]


def server_flags(servers: Sequence[Server]) -> dict[str, str]:
    """By kind of server, the flag without which not all requests in flight would run."""
    return {_kind(server): server.flag for server in servers if server.flag}


def flag_lines(setting: dict[str, Any]) -> list[str]:
    """The closing words of a report on the flags of `stated_servers`."""
    return [
        f"server flag: {flag} ({kind}: {setting['concurrency']} requests are in flight, SGLang's own limit is "
        f"{setting['servers'][kind]['default_limit']})"
        for kind, flag in setting["server_flags"].items()
    ]


def queueing(setting: Setting, policies: Sequence[Policy]) -> tuple[str, ...]:
    """A loud line where more requests are in flight than a limit that was given lets run."""
    if setting.concurrency is None or setting.engine.max_running_requests is None:
        return ()
    run = min(server.max_running_requests for server in servers_of(setting, policies)) * setting.engine.replicas
    if setting.concurrency <= run:
        return ()
    who = "that of the recorded server" if setting.recorded is not None else "as given"
    return (
        f"WARNING: {setting.concurrency} requests are in flight but only {run} run, the others queue: max running "
        f"requests is {setting.engine.max_running_requests} a replica, {who}",
    )


def _kind(server: Server) -> str:
    return "DSPARK" if server.drafting else "policy none"


def _graphs(setting: Setting, server: Server, of: str) -> Assumption:
    if server.batches is None:
        if setting.graphs == "profile":
            return Assumption("graphs", "profile", "", "as asked", f"CUDA graphs{of} are the profile's own")
        return Assumption("graphs", "none", "", "SGLang captures none on a CPU", f"no CUDA graphs{of}")
    sizes, most = len(server.batches), server.batches[-1]
    said = f"CUDA graphs{of}: {sizes} batch sizes up to {most} requests, {most * server.width:,} tokens"
    last = setting.cost.last_captured
    measured = min(last, setting.cost.verify.span[1]) if last < float("inf") else setting.cost.verify.span[1]
    if most * server.width > measured:
        said += (
            f"; beyond the {measured:,.0f} tokens that the profile measured in graphs on the line of their upper half"
        )
    why = f"SGLang's list: {setting.machine.words}" if setting.graphs == "sglang" else "set by the user"
    listed = ",".join(map(str, server.batches))
    return Assumption("graphs", listed, "requests", why, said)


def _limit(setting: Setting, server: Server, of: str) -> Assumption:
    default = setting.machine.running_limit(drafting=server.drafting)
    if default is None:
        why = "no limit of SGLang's but the least size of its request pool: the context length is not known"
    else:
        why = "SGLang's for DeepSeek-V4 models" if setting.machine.deepseek_v4 else "SGLang's for DSPARK"
    if server.asked_limit is not None:
        why = f"raised to the requests in flight; {server.default_limit} is {why}"
    what = f"max_running_requests{of} = {server.max_running_requests}"
    return Assumption("max_running_requests", server.max_running_requests, "requests", why, what)


def _max_tokens(setting: Setting) -> list[Assumption]:
    if setting.trace.max_tokens is not None:
        return []
    said = "clients ask for exactly the tokens that they get (max_tokens) and ignore the end of a sequence"
    return [
        Assumption("max_tokens", "output_length", "tokens", "as bench_serving sends it; the trace does not say", said)
    ]
