"""MkDocs hook: what the navigation names and is not there is left out; what is there and not named comes last."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    folder = Path(config["docs_dir"])
    config["nav"] = _present(config["nav"], folder)
    named = set(_pages(config["nav"]))
    rest = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    config["nav"] += [page for page in rest if page not in named]
    return config


def _present(nav: list[Any], folder: Path) -> list[Any]:
    """The same tree without pages that do not exist, and without sections that are empty then."""
    out: list[Any] = []
    for entry in nav:
        if isinstance(entry, str):
            out += [entry] if (folder / entry).exists() else []
            continue
        for title, inner in entry.items():
            kept = _present(inner if isinstance(inner, list) else [inner], folder)
            out += [{title: kept if isinstance(inner, list) else inner}] if kept else []
    return out


def _pages(nav: list[Any]) -> list[str]:
    """Every page of a tree."""
    found: list[str] = []
    for entry in nav:
        inner = [entry] if isinstance(entry, str) else list(entry.values())
        found += [page for each in inner for page in ([each] if isinstance(each, str) else _pages(each))]
    return found
