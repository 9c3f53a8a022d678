"""A process that measures when it is told to: a line of JSON in, a line of JSON back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError


class Child:
    """One process for all its measurements, so that what it imports, compiles and reads first is not timed."""

    def __init__(self, python: str, script: Path, *arguments: str, path: tuple[Path, ...] = ()) -> None:
        """path: folders that come first on its PYTHONPATH. Raises InputError where it does not start."""
        self._what = f"{python} {script.name}"
        folders = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
        try:  # -P: a sibling of the script is no module of the child
            self._process = subprocess.Popen(
                [python, "-P", str(script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise InputError(f"{python} does not start ({error.strerror}), expected a Python interpreter") from error
        self.ready = self._reply()

    def ask(self, **what: Any) -> dict[str, Any]:
        """Its answer to one request."""
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.__exit__()
            raise InputError(f"{self._what} ended with status {self._process.returncode}, its last words are above")
        return dict(json.loads(line))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
