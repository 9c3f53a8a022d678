"""What every command of this project shares: how it ends, how its help looks, and flags that are declared once."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
import signal
import sys
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sglang_dspark.errors import InputError

_OTHERS = "Options"
_NAMES = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Command(TyperCommand):
    """Help in plain text, no flag cut at any width, flags below the headings that they were given."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then a section a heading, in the order of the flags."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                is_argument = param.param_type_name == "argument"
                heading = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or _OTHERS
                sections.setdefault(heading, []).append(record)
        for heading in sorted(sections, key=lambda name: (name != "Arguments", name == _OTHERS)):
            with formatter.section(heading):
                formatter.write_dl(sections[heading], col_max=26)


class Application(typer.Typer):
    """An application whose commands have the help of this project, and its names of flags."""

    def __init__(self, **more: Any) -> None:
        super().__init__(
            **{"rich_markup_mode": None, "pretty_exceptions_enable": False, "context_settings": _NAMES, **more}
        )

    def command(self, name: str | None = None, **more: Any) -> Any:
        """A command of it."""
        return super().command(name, **{"cls": Command, "context_settings": _NAMES, **more})


def gathered(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose dataclass parameters are declared as the flags of their fields, and built from them."""
    hints = typing.get_type_hints(function, include_extras=True)
    asked = inspect.signature(function).parameters
    parts = {name: hints[name] for name in asked if dataclasses.is_dataclass(hints[name])}
    parameters = []
    for name, parameter in asked.items():
        if name not in parts:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        fields = typing.get_type_hints(parts[name], include_extras=True)
        for field in dataclasses.fields(parts[name]):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=fields[field.name]
                )
            )

    def command(**values: Any) -> None:
        groups = {
            name: kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in parts.items()
        }
        function(**groups, **values)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        from sglang_dspark.jit import stated

        print(f"sglang-dspark {version('sglang-dspark')}, {stated()}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="print the version and leave")
]


def run(command: Callable[[], object]) -> None:
    """Run a command-line application; bad input becomes one line on stderr and exit status 2.

    SIGTERM ends it as an interruption does, so that nothing half-written and no process stays behind.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        _discard_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard_output()
        print(f"error: cannot write {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def _discard_output() -> None:
    """What could not be written must not be tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)
