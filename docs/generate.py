"""The reference pages, written from the code: `python docs/generate.py`; `--check` says which of them are out of date.

A page of docs/reference is what its function in `PAGES` returns; a part of another page, between two marks, what its
function in `PARTS` returns. Nothing is simulated but two small runs, whose figures are listed, and one step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pages.commands import commands_page
from pages.figures import figures_page
from pages.policies import policies_page, profiles_page
from pages.server import server_page
from pages.traces import traces_page

DOCS = Path(__file__).parent
FOLDER = DOCS / "reference"
NOTE = "<!-- Written by `python docs/generate.py` from the code: change the code, not this page. -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is out of date")
    args = parser.parse_args()
    wanted = written()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    unknown = [path for path in FOLDER.glob("*.md") if path not in wanted]
    if args.check:
        for path in (*stale, *unknown):
            print(f"docs/{path.relative_to(DOCS)} is not what the code says: run python docs/generate.py")
        sys.exit(1 if stale or unknown else 0)
    FOLDER.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(wanted[path])
    for path in unknown:
        path.unlink()
    print(f"{len(wanted)} pages, {len(stale)} of them written anew")


def written() -> dict[Path, str]:
    """Text of every page that the code decides, or a part of it."""
    found = {FOLDER / name: f"{page().strip()}\n\n{NOTE}\n" for name, page in PAGES.items()}
    for (name, mark), part in PARTS.items():
        text = (DOCS / name).read_text()
        begin, end = f"<!-- {mark} -->", "<!-- end -->"
        before, _, after = text.partition(begin)
        assert after, f"docs/{name} has no mark {begin}"
        found[DOCS / name] = f"{before}{begin}\n{part().strip()}\n{end}{after.partition(end)[2]}"
    return found


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "server.md": server_page,
    "policies.md": policies_page,
    "profiles.md": profiles_page,
    "figures.md": figures_page,
    "traces.md": traces_page,
}


def one_decision() -> str:
    sys.path.insert(0, str(DOCS.parent / "benchmarks"))
    import one_decision as found

    return "\n".join(found.table(found.one_step()))


PARTS: dict[tuple[str, str], Callable[[], str]] = {("how_it_decides.md", "one decision"): one_decision}

if __name__ == "__main__":
    main()
