"""The application that every sub-command registers on."""

import typer

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="The `dspark` command."
)
audit_app = typer.Typer(no_args_is_help=True, help="Check that policies leave the target's output law as it is.")
app.add_typer(audit_app, name="audit")
