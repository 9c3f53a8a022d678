"""How every command of this project ends."""

import sys
from collections.abc import Callable

from sglang_dspark.errors import InputError


def run(command: Callable[[], object]) -> None:
    """Run a command-line application; bad input becomes one line on stderr and exit status 2."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
