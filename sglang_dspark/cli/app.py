"""The application that every sub-command registers on."""

from typing import Annotated

import typer

from sglang_dspark.keys import ADMIN_VARIABLE

ApiKey = Annotated[str | None, typer.Option("--api-key", help="SGLang's API key; serves for both if given alone.")]
AdminApiKey = Annotated[
    str | None,
    typer.Option("--admin-api-key", help=f"SGLang's admin API key (default: {ADMIN_VARIABLE}).", show_default=False),
]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="The `dspark` command."
)
audit_app = typer.Typer(no_args_is_help=True, help="Check that policies leave the target's output law as it is.")
app.add_typer(audit_app, name="audit")
