"""The live engine's fixtures (the trained pair, the server class) for the audit's tests."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_SERVING = Path(__file__).parent.parent / "serving"
sys.path.insert(0, str(_SERVING))

_spec = spec_from_file_location("serving_conftest", _SERVING / "conftest.py")
assert _spec is not None and _spec.loader is not None
_serving = module_from_spec(_spec)
_spec.loader.exec_module(_serving)

demo_pair = _serving.demo_pair
