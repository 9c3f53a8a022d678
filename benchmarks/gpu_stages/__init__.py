"""The stages of `gpu_session.py`: each module has `run(stage)`, which notes figures as they come."""

from __future__ import annotations

import importlib
import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Skip(Exception):
    """A stage has nothing to do here; says why."""


class Stage:
    """What a stage is given: its folder, its device, and where its figures go."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out
        self.rehearsal = bool(os.environ.get("DSPARK_REHEARSE"))
        self.sglang = os.environ.get("DSPARK_SGLANG") or None
        self._found: dict[str, Any] = {"status": "running"}
        self._write()

    def note(self, **figures: Any) -> None:
        """Keep figures; they are on the disk when this returns."""
        print(*(f"{name}: {value}" for name, value in figures.items()), sep="\n", flush=True)
        self._found |= figures
        self._write()

    def end(self, status: str, reason: str = "") -> None:
        """done, skipped or failed."""
        self._found |= {"status": status, "reason": reason}
        self._write()

    @property
    def device(self) -> Any:
        """The CUDA device; the CPU in a rehearsal. Skips the stage where there is neither."""
        import torch

        if torch.cuda.is_available():
            return torch.device("cuda")
        if self.rehearsal:
            return torch.device("cpu")
        raise Skip("no CUDA device")

    @contextmanager
    def kernels_run(self, *modules: Any) -> Iterator[None]:
        """Triton's interpreter in a rehearsal; a GPU needs nothing."""
        if self.device.type == "cuda":
            yield
            return
        from dspark_kernels.interpreter import interpreted

        with interpreted(*modules):
            yield

    def _write(self) -> None:
        path = self.out / f"{self.name}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self._found, indent=1, default=str) + "\n")
        part.replace(path)


def run(name: str, out: str) -> None:
    """Run one stage and note how it ended."""
    stage = Stage(name, Path(out))
    try:
        importlib.import_module(f"gpu_stages.{name}").run(stage)
    except Skip as reason:
        stage.end("skipped", str(reason))
    except Exception as error:
        traceback.print_exc()
        stage.end("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        stage.end("done")
