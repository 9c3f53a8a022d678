"""Markdown out of plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that means nothing to Markdown; what stands in backticks stays."""
    parts = re.split(r"(``?[^`]+``?)", " ".join(text.split()))
    return "".join(
        f"`{part.strip('`')}`" if at % 2 else re.sub(r"([*<\[])", r"\\\1", part) for at, part in enumerate(parts)
    )


def code(text: str) -> str:
    return f"`{text}`" if text else ""
