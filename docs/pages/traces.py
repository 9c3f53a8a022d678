"""Trace formats, as the readers' modules describe them."""

from __future__ import annotations

import inspect
import re

from pages.text import plain, table


def traces_page() -> str:
    from simulator.traces import TRACE_FORMATS, formats, server_files

    described = _terms(formats.__doc__ or "") | _terms(server_files.__doc__ or "")
    missing = [name for name in TRACE_FORMATS if name not in described]
    assert not missing, f"the docstrings of simulator/traces do not describe {missing}"
    rows = []
    for name, reader in TRACE_FORMATS.items():
        unit = {None: "in the file", "s": "seconds", "ms": "milliseconds"}.get(reader.time_unit, str(reader.time_unit))
        rows.append([f"[`{name}`](#{name})", plain(reader.about), unit])
    rest = inspect.cleandoc(formats.__doc__ or "").split("\n\nAny of them", 1)[1]
    return "\n\n".join(
        [
            "# Trace formats",
            "`simulate --trace FILE` and `dspark tune --trace FILE` tell a file's format from its first line; "
            "`--format NAME` says it. A folder is read as the records of a server (`--speculative-dspark-record`). "
            "[Traces](../traces.md) says how to get one of your own traffic.",
            table(["format", "told by", "stamps without a unit of their own"], rows),
            *(part for name in TRACE_FORMATS for part in (f"## {name}", plain(described[name]))),
            "## What holds for all",
            *_list_or_paragraph("Any of them" + rest),
        ]
    )


def _terms(doc: str) -> dict[str, str]:
    """A docstring's definition list: names in the first column, what they are below them."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        if re.fullmatch(r"[a-z][a-z-]*(, [a-z][a-z-]*)*", line):
            names = line.split(", ")
            found |= dict.fromkeys(names, "")
        elif line.startswith("    ") and names:
            for name in names:
                found[name] += line + " "
        elif line:
            names = []
    return found


def _list_or_paragraph(text: str) -> list[str]:
    out = []
    for paragraph in text.split("\n\n"):
        items = re.split(r"(?:^|\n)- ", paragraph)
        out.append("\n".join(f"- {plain(item)}" for item in items if item) if len(items) > 1 else plain(paragraph))
    return out
