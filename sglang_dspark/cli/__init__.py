"""The `dspark` command. Each sub-command lives in a module of its own and imports what it needs when it runs."""

import sys

import typer

from sglang_dspark.errors import InputError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split(".")[0]
)
audit_app = typer.Typer(no_args_is_help=True, help="Check that policies leave the target's output law as it is.")
app.add_typer(audit_app, name="audit")


def run(command: typer.Typer) -> None:
    """Run a typer application; bad input becomes one line on stderr and exit status 2."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)


def main() -> None:
    """Entry point of the `dspark` command."""
    run(app)


# Each module registers its commands on `app` or on one of its groups.
from sglang_dspark.cli import (  # noqa: E402
    ab,  # noqa: F401
    audit,  # noqa: F401
    audit_live,  # noqa: F401
    calibrate,  # noqa: F401
    compare,  # noqa: F401
    demo_model,  # noqa: F401
    evaluate,  # noqa: F401
    policy,  # noqa: F401
    profile,  # noqa: F401
    profiles,  # noqa: F401
    record,  # noqa: F401
)
