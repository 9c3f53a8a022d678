"""SGLang's two SPS table files, and ours on top of them.

SGLang 0.5.23 reads {sample_batch_tokens, sample_steps_per_sec, max_batch_tokens} (floor look-up) or
{bias_seconds, bs_probes, alpha_seconds, m_probes, theta_seconds} (sums of interpolations), told apart by the text
"bias_seconds"; it ignores further keys. We add `meta` (provenance) and `tiered` (what is executed, the draft apart), so
that one file serves both.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.errors import InputError


class SpsCostTable(msgspec.Struct, frozen=True, omit_defaults=True):
    """Steps per second by verified tokens; a token count reads the probe below it."""

    sample_batch_tokens: list[int]
    sample_steps_per_sec: list[float]
    max_batch_tokens: int
    meta: dict[str, Any] | None = None


class MeasuredDraft(msgspec.Struct, frozen=True, omit_defaults=True):
    """Draft seconds by requests; rows by context length when there is more than one."""

    num_requests: list[int]
    seconds: list[float | list[float]]
    context_tokens_per_request: list[int] | None = None


class MeasuredVerify(msgspec.Struct, frozen=True, omit_defaults=True):
    """Verify seconds by verified tokens (anchors included); rows by context length when there is more than one."""

    num_tokens: list[int]
    seconds: list[float | list[float]]
    context_tokens_per_request: list[int] | None = None


class Tiered(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is executed: graph sizes in verified tokens, largest batch with a graph, eager tail, scalar terms."""

    draft: MeasuredDraft
    verify: MeasuredVerify
    captured_tokens: list[int]
    captured_requests: int
    eager: MeasuredVerify | None = None
    terms: dict[str, float] = {}


class SpsAdditiveCostTable(msgspec.Struct, frozen=True, omit_defaults=True):
    """Step seconds = bias + alpha(requests) + theta(verified tokens), each linear between probes, clamped."""

    bias_seconds: float
    bs_probes: list[int]
    alpha_seconds: list[float]
    m_probes: list[int]
    theta_seconds: list[float]
    meta: dict[str, Any] | None = None
    tiered: Tiered | None = None


Table = SpsCostTable | SpsAdditiveCostTable


def decode_table(data: bytes, name: str) -> Table:
    """Read a table as SGLang would tell it apart; InputError names what does not fit."""
    kind: type[Table] = SpsAdditiveCostTable if b'"bias_seconds"' in data else SpsCostTable
    try:
        table = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"profile {name}: {error}") from error
    return table


def encode_table(table: Table) -> bytes:
    """JSON that SGLang's own loader reads; without meta and tiered, byte for byte what SGLang writes."""
    data = msgspec.json.encode(table)
    if isinstance(table, SpsCostTable) and b'"bias_seconds"' in data:
        raise InputError('a 1-D table must not hold the text "bias_seconds": SGLang would read it as the additive form')
    return data


def write_table(path: Path, table: Table) -> None:
    """Write a profile file, indented; nothing is left under `path` if the disk refuses (InputError)."""
    data = msgspec.json.format(encode_table(table), indent=1)
    write_atomically(path, data)


def write_atomically(path: Path, data: bytes) -> None:
    """Write all of `data` under the final name or nothing; InputError names path and reason."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise InputError(f"cannot write {path}: {error.strerror}") from error
