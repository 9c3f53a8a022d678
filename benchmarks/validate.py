"""The simulator held against what others measured: published, predicted, error, and what each row is worth.

Run: python benchmarks/validate.py [--only figure8] [--rows] prints docs/validation.md (minutes, no GPU, no network;
needs the extra `estimate`); --write keeps the page, its figure (extra `plot`), the rows that --check compares with, and
what results on measured step costs quote. --check runs a part of the rows in seconds and fails when an error has grown
since (CI runs it).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
from validation import acceptance, captured, figure8, frontier, production, rocm
from validation.check import grown, keep, kept
from validation.page import document, draw, line, quoted
from validation.rows import Section

ROOT = Path(__file__).parents[1]
DOCUMENT, PICTURE = ROOT / "docs" / "validation.md", ROOT / "docs" / "validation.svg"
QUOTED = ROOT / "simulator" / "results" / "validation.json"
SOURCES = {
    "frontier": frontier,
    "figure8": figure8,
    "production": production,
    "rocm": rocm,
    "captured": captured,
    "acceptance": acceptance,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SOURCES, help="one source")
    parser.add_argument("--rows", action="store_true", help="print every row, also those that the page summarises")
    parser.add_argument("--write", action="store_true", help="keep page, figure, rows and what results quote")
    parser.add_argument("--check", action="store_true", help="a part in seconds: has an error grown?")
    args = parser.parse_args()
    if args.write and (args.only or args.check):
        parser.error("--write keeps every source: give it without --only and --check")
    chosen = [args.only] if args.only else list(SOURCES)
    sections = [found for name in chosen if (found := simulated(name, args.check)) is not None]
    if args.rows or args.check:
        print("against | what | published | predicted | error | worth")
        for section in sections:
            for group in section.groups:
                for row in group.rows:
                    print(line(group, row))
    if args.check:
        worse = grown(sections, kept())
        for sentence in worse:
            print(f"grown: {sentence}", file=sys.stderr)
        sys.exit(1 if worse else 0)
    page = "\n".join(document(sections)) + "\n"
    if not args.rows:
        sys.stdout.write(page)
    if args.write:
        DOCUMENT.write_text(page)
        QUOTED.write_bytes(msgspec.json.format(msgspec.json.encode(quoted(sections)), indent=1) + b"\n")
        keep(sections)
        draw(sections, PICTURE)


def simulated(name: str, short: bool) -> Section | None:
    """A source's section, told of on the terminal."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    return SOURCES[name].section(short)


if __name__ == "__main__":
    main()
