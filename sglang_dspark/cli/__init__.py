"""The `dspark` command. Each sub-command lives in a module of its own and imports what it needs when it runs."""

# Each module registers its commands on `app` or on one of its groups.
from sglang_dspark.cli import (
    ab,  # noqa: F401
    audit,  # noqa: F401
    audit_live,  # noqa: F401
    calibrate,  # noqa: F401
    compare,  # noqa: F401
    demo_model,  # noqa: F401
    doctor,  # noqa: F401
    drafters,  # noqa: F401
    evaluate,  # noqa: F401
    policies,  # noqa: F401
    policy,  # noqa: F401
    profile,  # noqa: F401
    profiles,  # noqa: F401
    record,  # noqa: F401
    tune,  # noqa: F401
)
from sglang_dspark.cli.app import app
from sglang_dspark.command import run


def main() -> None:
    """Entry point of the `dspark` command."""
    run(app)
