"""The application that every sub-command registers on, and the flags that several of them share."""

from typing import Annotated

import typer

from sglang_dspark.command import Application, Version
from sglang_dspark.keys import ADMIN_VARIABLE

URL = "http://localhost:30000"
"""Where SGLang serves by default."""

Url = Annotated[str, typer.Option("--url", help="The server.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="SGLang's API key; serves for both if given alone.")]
AdminApiKey = Annotated[
    str | None,
    typer.Option("--admin-api-key", help=f"SGLang's admin API key (default: {ADMIN_VARIABLE}).", show_default=False),
]

app = Application(
    no_args_is_help=True, help="Verification policies for SGLang: choose, tune, calibrate, measure, audit."
)
audit_app = Application(no_args_is_help=True, help="Check that policies leave the target's output law as it is.")
app.add_typer(audit_app, name="audit")


@app.callback()
def main(version: Version = False) -> None:
    """Verification policies for SGLang: choose, tune, calibrate, measure, audit."""
