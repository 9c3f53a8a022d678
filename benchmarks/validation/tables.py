"""The published figures beside this package."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent


@lru_cache(maxsize=16)
def table(name: str) -> tuple[dict[str, str], ...]:
    """Rows of published/NAME.csv."""
    with (HERE / "published" / f"{name}.csv").open() as file:
        return tuple(csv.DictReader(file))
