"""Prompts of an audit: a JSON Lines file, one object a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from sglang_dspark.errors import InputError

_TEXT_FIELDS = ("prompt", "text")
_EXPECTED = 'expected {"prompt": TEXT}, {"text": TEXT}, {"turns": [TEXT, ...]} or {"input_ids": [NUMBER, ...]}'


class Tokenizer(Protocol):
    """As transformers' tokenizers."""

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, and where it came from."""

    name: str
    tokens: tuple[int, ...]


def read_prompts(path: Path, limit: int, tokenizer: Tokenizer) -> list[Prompt]:
    """The first `limit` prompts of a file; of several turns the first one counts.

    Errors: InputError names the line and what was expected.
    """
    if limit < 1:
        raise InputError(f"--limit {limit} is refused, expected at least 1")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts {path}: {getattr(error, 'strerror', None) or error}") from error
    found: list[Prompt] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and len(found) < limit:
            found.append(_prompt(line, f"{path.name}:{number}", tokenizer))
    if not found:
        raise InputError(f"prompts {path}: the file holds no prompt, {_EXPECTED}")
    return found


def _prompt(line: str, where: str, tokenizer: Tokenizer) -> Prompt:
    try:
        record: Any = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise InputError(f"prompts {where}: {error}; {_EXPECTED}") from error
    if not isinstance(record, dict):
        raise InputError(f"prompts {where}: {_EXPECTED}")
    tokens = record.get("input_ids")
    if tokens is None:
        tokens = tokenizer.encode(_text(record, where))
    numbers = isinstance(tokens, list) and all(
        isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in tokens
    )
    if not numbers or not tokens:
        raise InputError(f"prompts {where}: the prompt has no tokens, {_EXPECTED}")
    return Prompt(where, tuple(tokens))


def _text(record: dict[str, Any], where: str) -> str:
    turns = record.get("turns")
    text = (
        turns[0] if isinstance(turns, list) and turns else next((record[f] for f in _TEXT_FIELDS if f in record), None)
    )
    if not isinstance(text, str) or not text:
        raise InputError(f"prompts {where}: {_EXPECTED}")
    return text
