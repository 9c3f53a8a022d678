"""A test build of the engine that accepts `argmax-live`, so that an audit has something to catch.

The engine itself has no switch for it: a second plug-in, found through PYTHONPATH, declares the policy lossless.
"""

from __future__ import annotations

import os
from pathlib import Path

_PLUGIN = """
def register():
    from sglang_dspark.policies import ArgmaxLive

    ArgmaxLive.lossless = True
"""


def biased_environment(folder: Path) -> dict[str, str]:
    """Environment for `LiveServer` in which the live engine runs `argmax-live`; `folder` gets the plug-in."""
    info = folder / "dspark_biased-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dspark-biased\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\ndspark_biased = dspark_biased:register\n")
    (folder / "dspark_biased.py").write_text(_PLUGIN)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}
