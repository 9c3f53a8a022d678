"""What was kept of the last full run, and whether an error has grown since."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from .rows import Row, Section

KEPT = Path(__file__).with_name("kept.csv")
MARGIN = {"points": 0.5, "%": 0.5, "tokens": 0.03}
"""An error may grow by so much: what another NumPy does to a simulation, not what a change of the model does."""


def keep(sections: Sequence[Section], path: Path = KEPT) -> None:
    """Write the rows that may be checked; a group is named in its first."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["group", "what", "unit", "kind", "published", "predicted"])
        for section in sections:
            for group in filter(lambda each: each.checked, section.groups):
                for number, row in enumerate(group.rows):
                    values = (f"{row.published:.5g}", f"{row.predicted:.5g}")
                    named = "" if number else group.name
                    out.writerow([named, row.what, row.unit, row.kind, *values])


def kept(path: Path = KEPT) -> dict[tuple[str, str], Row]:
    """Rows by group and what they are."""
    found, group = {}, ""
    with path.open() as file:
        for row in csv.DictReader(file):
            group = row["group"] or group
            values = (float(row["published"]), float(row["predicted"]))
            found[group, row["what"]] = Row(row["what"], *values, row["unit"], row["kind"])
    return found


def grown(sections: Sequence[Section], before: dict[tuple[str, str], Row]) -> list[str]:
    """One sentence for every row whose error is larger than it was, or that says of itself more than it did."""
    found = []
    for section in sections:
        for group in section.groups:
            for row in group.rows:
                known = before.get((group.name, row.what))
                if known is None:
                    found.append(f"{group.name}, {row.what}: not among the rows kept: run validate.py --write")
                elif row.kind != known.kind:
                    found.append(f"{group.name}, {row.what}: is called {row.kind}, and was {known.kind}")
                elif abs(row.error) > abs(known.error) + MARGIN[row.error_unit]:
                    unit = row.error_unit
                    found.append(
                        f"{group.name}, {row.what}: off by {row.error:+.2f} {unit}, and was by {known.error:+.2f}"
                    )
    return found
