"""Every command with its help and its flags."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from pages.text import code, plain, table


def every_command() -> dict[str, Any]:
    """Every command by its words, as a user types them."""
    from sglang_dspark import cli
    from simulator import cli as simulate_cli

    found = {"simulate": typer.main.get_command(simulate_cli.app)}
    found |= _commands_below("dspark", typer.main.get_command(cli.app))
    return found


def _commands_below(words: str, command: Any) -> dict[str, Any]:
    inner = getattr(command, "commands", None)
    if not inner:
        return {words: command}
    return {
        name: each for word in sorted(inner) for name, each in _commands_below(f"{words} {word}", inner[word]).items()
    }


def commands_page() -> str:
    found = every_command()
    parts = [
        "# Commands",
        "What `--help` says. Every command takes `-h`; `simulate` and `dspark` take `--version` and "
        "`--install-completion`. Bad input is one sentence and exit status 2.",
        table(
            ["command", "what it does"],
            (
                [f"[`{words}`](#{words.replace(' ', '-')})", plain(_first_sentence(each))]
                for words, each in found.items()
            ),
        ),
    ]
    for words, each in found.items():
        parts += [f"## {words}", *_paragraphs(each.help or ""), *_options(words, each)]
    return "\n\n".join(parts)


def _first_sentence(command: Any) -> str:
    return " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())


def _paragraphs(text: str) -> list[str]:
    """A docstring's paragraphs; those that begin with a `\\b` are as they are."""
    out = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if "\b" in paragraph:
            out.append("```\n" + inspect.cleandoc("\n" + paragraph.split("\b\n")[-1]) + "\n```")
        else:
            out.append(plain(paragraph))
    return out


def _options(words: str, command: Any) -> list[str]:
    """A table a heading, as in the help."""
    context = command.make_context(words, [], resilient_parsing=True)
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is None or record[0].startswith(("--help", "-h", "--install", "--show")):
            continue
        is_argument = param.param_type_name == "argument"
        heading = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or "Options"
        sections.setdefault(heading, []).append(record)
    return [
        table([heading, ""], ([code(flag), plain(said)] for flag, said in records))
        for heading, records in sections.items()
    ]
