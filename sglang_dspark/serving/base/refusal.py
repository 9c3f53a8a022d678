"""How our part of a server refuses to start."""

from __future__ import annotations

import sys

from sglang_dspark.errors import printable


def leave(error: Exception | str) -> SystemExit:
    """An exit that SGLang's `except Exception` around plug-ins does not swallow."""
    print(f"sglang-dspark: {printable(str(error))}", file=sys.stderr, flush=True)
    return SystemExit(2)
