"""Finished runs in a file, so that a comparison or a sweep that was interrupted goes on where it stopped.

JSON lines: a header with the version, then `{"key": .., "figures": {..}}` a run. A key names everything that a run
depends on: setting, policy, set of draws, and the release that simulated it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, policy_to_string
from simulator.engine.run import Setting
from simulator.results.metrics import Figures

FORMAT, VERSION = "sglang-dspark-runs", 1


class RunStore:
    """Runs by key. A line that an interruption cut off is dropped; a file of another kind or version is refused."""

    def __init__(self, path: Path) -> None:
        """Read what is there. Errors: InputError."""
        self._path, self._digests = path, {}  # type: Path, dict[int, str]
        self._runs: dict[str, Figures] = {}
        try:
            text = path.read_text() if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as kept runs: {error}") from error
        lines = text.split("\n")
        if text:
            self._check(lines[0])
        for line in lines[1:-1]:
            run = json.loads(line)
            self._runs[run["key"]] = run["figures"]
        self._whole = len(text) - len(lines[-1])

    def known(self, settings: Sequence[Setting], tasks: Sequence[tuple[int, Policy, int]]) -> dict[int, Figures]:
        """Figures of the tasks that are in the file, by their number."""
        keys = (self._key(settings, task) for task in tasks)
        return {index: dict(self._runs[key]) for index, key in enumerate(keys) if key in self._runs}

    def add(
        self, settings: Sequence[Setting], tasks: Sequence[tuple[int, Policy, int]], found: Sequence[Figures]
    ) -> None:
        """Append finished runs. Errors: InputError for a full disk."""
        keys = [self._key(settings, task) for task in tasks]
        self._runs.update(zip(keys, found, strict=True))
        lines = [json.dumps({"key": key, "figures": figures}) for key, figures in zip(keys, found, strict=True)]
        if self._whole == 0:
            lines.insert(0, json.dumps({"format": FORMAT, "version": VERSION}))
        try:
            with open(self._path, "r+b" if self._path.exists() else "wb") as file:
                file.truncate(self._whole)
                file.seek(self._whole)
                file.write("".join(f"{line}\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
                self._whole = file.tell()
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from error

    def _check(self, first: str) -> None:
        try:
            header = json.loads(first)
            found = header["format"], header["version"]
        except (ValueError, KeyError, TypeError):
            found = ("", 0)
        if found[0] != FORMAT:
            raise InputError(f"{self._path} does not hold kept runs, expected a new file or one that --resume wrote")
        if found[1] != VERSION:
            raise InputError(
                f"{self._path} holds runs of version {found[1]}, expected {VERSION}: give another file to simulate anew"
            )

    def _key(self, settings: Sequence[Setting], task: tuple[int, Policy, int]) -> str:
        number, policy, replication = task
        setting = settings[number]
        if id(setting) not in self._digests:
            self._digests[id(setting)] = digest(setting, release())
        return digest(self._digests[id(setting)], type(policy).__qualname__, policy_to_string(policy), replication)


def release() -> str:
    """The version of this package."""
    try:
        return version("sglang-dspark")
    except PackageNotFoundError:
        return "unknown"


def digest(*values: Any) -> str:
    """A hash of values by content, the same in every process: plain values, arrays, dataclasses, msgspec structs."""
    state = blake2b(digest_size=16)
    for value in values:
        _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    state.update(type(value).__name__.encode() + b"(")
    if isinstance(value, np.ndarray):
        state.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.compare or not field.name.startswith("_"):
                state.update(field.name.encode() + b"=")
                _feed(state, getattr(value, field.name))
    elif isinstance(value, msgspec.Struct):
        _feed(state, msgspec.to_builtins(value))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            state.update(f"{key}:".encode())
            _feed(state, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(state, item)
    else:
        state.update(repr(value).encode())
    state.update(b")")
