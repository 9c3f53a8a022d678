"""The study of a search in an SQLite file: trials in order, and what the study depends on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.errors import InputError

VERSION = 1
_NAME = "dspark tune"


class StoredStudy:
    """The study in a file. Errors: InputError for a file of another kind, version or plan."""

    def __init__(self, optuna: Any, path: Path, directions: Sequence[str], plan: dict[str, Any]) -> None:
        """Open the study in `path`, or begin one. plan: what it depends on, in plain values."""
        self._optuna, self._path = optuna, path
        stated = {"version": VERSION, "optuna": optuna.__version__, "plan": plan}
        with self._told():
            if not path.exists():
                self._create(stated, directions)
            _check_file(path)
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            self._study = optuna.load_study(storage=storage, study_name=_NAME)
            found = self._study.user_attrs.get("dspark")
        self._check(found, stated)

    def _create(self, stated: dict[str, Any], directions: Sequence[str]) -> None:
        """Under another name first, so that an interruption leaves no file that is half a study."""
        begun = self._path.with_name(f"{self._path.name}.new")
        begun.unlink(missing_ok=True)
        storage = self._optuna.storages.RDBStorage(f"sqlite:///{begun}")
        study = self._optuna.create_study(storage=storage, study_name=_NAME, directions=list(directions))
        study.set_user_attr("dspark", stated)
        storage.engine.dispose()
        begun.replace(self._path)

    def trials(self) -> list[Any]:
        """Finished ones, in order."""
        with self._told():
            return list(self._study.get_trials(deepcopy=False))

    def add(self, trials: Sequence[Any]) -> None:
        """Append finished trials."""
        with self._told():
            self._study.add_trials(trials)

    def _check(self, found: Any, stated: dict[str, Any]) -> None:
        again = f"give another --study, or remove {self._path} to begin anew"
        if not isinstance(found, dict) or found.get("version") != VERSION:
            version = found.get("version") if isinstance(found, dict) else "none"
            raise InputError(f"study {self._path} is of version {version}, expected {VERSION}: {again}")
        if found["optuna"] != stated["optuna"]:
            raise InputError(
                f"study {self._path} was made with optuna {found['optuna']}, expected {stated['optuna']}: {again}"
            )
        plan = msgspec.json.decode(msgspec.json.encode(stated["plan"]))
        other = [key for key in {**plan, **found["plan"]} if found["plan"].get(key) != plan.get(key)]
        if other:
            key = other[0]
            was, now = (_short(each.get(key)) for each in (found["plan"], plan))
            raise InputError(f"study {self._path} is of another search ({key}: {was}, expected {now}): {again}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever the database says, in one sentence."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, self._optuna.exceptions.StorageInternalError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:160]
            raise InputError(f"study {self._path} cannot be used ({reason}): give another --study") from error


def _check_file(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        if head[:15] != b"SQLite format 3":
            raise InputError(f"study {path} is no SQLite file, expected one that dspark tune wrote, or a new name")
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            tables = {row[0] for row in database.execute("select name from sqlite_master")}
        database.close()
    except OSError as error:
        raise InputError(f"study {path} cannot be read: {error.strerror}") from error
    except sqlite3.Error as error:
        raise InputError(f"study {path} cannot be read: {error}") from error
    if "studies" not in tables:
        raise InputError(f"study {path} holds no study of Optuna's, expected one that dspark tune wrote, or a new name")


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}..."
