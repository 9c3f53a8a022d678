"""A test build of the engine in which parts fail on demand: a second plug-in, found through PYTHONPATH.

Each fault is planted by making a file of its name in the folder that DSPARK_PLANTED names, and goes with it.
"""

from __future__ import annotations

import os
from pathlib import Path

_PLUGIN = """
import os
from pathlib import Path

def planted(name):
    return (Path(os.environ["DSPARK_PLANTED"]) / name).exists()


def register():
    # Light modules only: every process of the server comes by here.
    from sglang_dspark.serving.feedback.drift import DriftWatch
    from sglang_dspark.serving.gpu.device_kernels.guarded import Guarded

    seen, call = DriftWatch.on_step, Guarded.__call__

    def on_step(self, record):
        if planted("observer"):
            raise ZeroDivisionError("a planted observer")
        seen(self, record)

    def called(self, *arguments, **named):
        ours = self.ours
        if planted(f"kernel {self.name}"):
            self.ours = lambda *arguments, **named: 1 // 0
        try:
            return call(self, *arguments, **named)
        finally:
            self.ours = ours

    DriftWatch.on_step, Guarded.__call__ = on_step, called
"""


_RULES = '''
from dataclasses import dataclass
from typing import ClassVar

from dspark_planted import planted
from sglang_dspark.policies import BudgetRule, StoppingRule


@dataclass(frozen=True)
class PlantedBudget(BudgetRule):
    """Half of every block, until it divides by zero."""

    name: ClassVar[str] = "planted-budget"

    def budget(self, past):
        return past.num_requests * past.gamma // (0 if planted("policy") else 2)


@dataclass(frozen=True)
class PlantedStop(StoppingRule):
    """What is likelier than not, until a rank divides by zero."""

    name: ClassVar[str] = "planted-stop"

    def admits(self, past, admitted, tau, survival):
        return survival > (1 << 24) // (0 if planted("policy") and admitted > 4 else 2)
'''


class Planted:
    """The folder of a test build, and what is planted in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.switches = folder, folder / "planted"
        self.switches.mkdir(parents=True)
        info = folder / "dspark_planted-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dspark-planted\nVersion: 0\n")
        (info / "entry_points.txt").write_text(
            "[sglang.srt.plugins]\ndspark_planted = dspark_planted:register\n[sglang_dspark.policies]\n"
            "planted-budget = dspark_planted_rules:PlantedBudget\nplanted-stop = dspark_planted_rules:PlantedStop\n"
        )
        (folder / "dspark_planted.py").write_text(_PLUGIN)
        (folder / "dspark_planted_rules.py").write_text(_RULES)

    @property
    def environment(self) -> dict[str, str]:
        """For `LiveServer`."""
        paths = [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), "DSPARK_PLANTED": str(self.switches)}

    def plant(self, name: str) -> None:
        """Let a part fail from now on."""
        (self.switches / name).write_text("")

    def clear(self) -> None:
        """Let everything work again."""
        for path in self.switches.iterdir():
            path.unlink()
