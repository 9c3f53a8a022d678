"""`dspark policies`: every policy with its class and parameters, and the verdict on a rule of one's own."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from sglang_dspark.cli.app import app
from sglang_dspark.errors import InputError

if TYPE_CHECKING:
    from sglang_dspark.policies import Policy

_INSTANCES = 60  # worlds that the exact audit enumerates of every set of parameters


@app.command("policies")
def policies(
    policy: Annotated[list[str] | None, typer.Argument(help="Policies by name (default: all).")] = None,
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="MODULE:CLASS", help="Run contract and exact audit of a rule of your own."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List policies: class, lossless or not, parameters with defaults and ranges; or judge a rule of one's own.

    With --check: exit status 1 if the contract or the audit finds something.
    """
    if check is not None:
        if policy:
            raise InputError(f"--check {check} judges one class: expected no policy names beside it")
        found = _judged(check)
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode() if json else _sentences(found))
        raise typer.Exit(0 if found["verdict"] == "holds" else 1)
    listed = [described(name) for name in policy or _known()]
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(listed), indent=1).decode())
    else:
        typer.echo(_page(listed, shutil.get_terminal_size((100, 24)).columns))


def _known() -> list[str]:
    from sglang_dspark.policies import POLICIES, installed

    return [*POLICIES, *installed()]


def described(name: str) -> dict[str, Any]:
    """What the code says of a policy, in plain values."""
    from sglang_dspark.policies import find_policy, installed
    from sglang_dspark.policies.format import written
    from sglang_dspark.policies.parameters import expected, field_types

    cls = find_policy(name)
    kinds = field_types(cls)
    whose = installed()[name].package if name in installed() else "sglang-dspark"
    return {
        "policy": name,
        "class": cls().kind,
        "lossless": cls().lossless,
        "package": whose,
        "summary": (cls.__doc__ or "").split("\n\n")[0].replace("\n    ", " "),
        "parameters": [
            {
                "name": field.name,
                "default": written(field.default),
                "expected": expected(field, kinds[field.name]),
                "meaning": field.metadata.get("doc", ""),
            }
            for field in dataclasses.fields(cls)
        ],
    }


def _page(listed: list[dict[str, Any]], width: int) -> str:
    """The policies one below the other."""
    lines: list[str] = []
    for each in listed:
        lossless = "lossless" if each["lossless"] else "NOT lossless: for research"
        source = "" if each["package"] == "sglang-dspark" else f", from {each['package']}"
        lines.append(f"{each['policy']}  ({each['class']}, {lossless}{source})")
        lines += textwrap.wrap(each["summary"], width, initial_indent="  ", subsequent_indent="  ")
        for one in each["parameters"]:
            text = f"{one['name']}={one['default']}: {one['meaning']}{' ' * bool(one['meaning'])}({one['expected']})"
            lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines[:-1])


def _judged(where: str) -> dict[str, Any]:
    """Contract and exact audit of MODULE:CLASS."""
    from sglang_dspark.policies.contract import check_class, instances
    from sglang_dspark.policies.drawing import ContractViolation

    cls = _loaded(where)
    found: dict[str, Any] = {"class": where, "policy": cls.name, "kind": cls().kind, "lossless": cls().lossless}
    began = time.perf_counter()
    try:
        check_class(cls)
    except ContractViolation as error:
        return {**found, "verdict": "fails", "contract": str(error), "contract_s": time.perf_counter() - began}
    found |= {"contract": "passed", "contract_s": time.perf_counter() - began}
    return found | _audited(list(instances(cls)))


def _audited(candidates: list[Policy]) -> dict[str, Any]:
    """The worst total variation of a few sets of parameters in small worlds."""
    from sglang_dspark.audit.exact import audit_exactly
    from sglang_dspark.audit.world import Shape

    began = time.perf_counter()
    shape = Shape(2, 2, 2, 2 + max(2, *(policy.max_lag for policy in candidates)))
    fitting = [policy for policy in candidates if _fits(policy, shape.gamma)]
    if not fitting:
        return {"verdict": "fails", "audit": f"no parameters fit a block of {shape.gamma}, so nothing was enumerated"}
    verdicts = audit_exactly(fitting, shape, instances=_INSTANCES)
    worst = max(verdicts, key=lambda verdict: verdict.worst_tv)
    claims = any(verdict.fails for verdict in verdicts)
    return {
        "verdict": "fails" if claims else "holds",
        "audit": f"worst total variation {worst.worst_tv:.1e} ({worst.policy}) in {worst.instances} worlds",
        "worst_tv": worst.worst_tv,
        "audit_s": time.perf_counter() - began,
    }


def _fits(policy: Policy, gamma: int) -> bool:
    try:
        policy.check(gamma)
    except InputError:
        return False
    return True


def _loaded(where: str) -> type[Policy]:
    from sglang_dspark.policies.external import check_kind

    module, colon, name = where.partition(":")
    if not colon or not name:
        raise InputError(f"--check {where} is refused, expected MODULE:CLASS, such as my_rules:Half")
    sys.path.insert(0, "")  # a module beside the user counts
    try:
        cls = getattr(importlib.import_module(module), name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--check {where} cannot be loaded: {type(error).__name__}: {error}") from error
    check_kind(cls, f"--check {where}")
    checked: type[Policy] = cls
    return checked


def _sentences(found: dict[str, Any]) -> str:
    lines = [f"{found['class']}: policy '{found['policy']}', class {found['kind']}"]
    lines.append(f"contract  {found['contract']} ({found['contract_s']:.1f} s)")
    if "audit" in found:
        lines.append(f"audit     {found['audit']}" + (f" ({found['audit_s']:.1f} s)" if "audit_s" in found else ""))
    if found["verdict"] == "fails":
        lines.append("verdict   FAILS")
    else:
        lines.append("verdict   holds" if found["lossless"] else "verdict   not lossless, as its class says: research")
    return "\n".join(lines)
