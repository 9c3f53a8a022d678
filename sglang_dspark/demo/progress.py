"""Progress bars on stderr."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers.utils import logging

from sglang_dspark.demo.build import Report


@contextlib.contextmanager
def reporting() -> Iterator[Report]:
    """A function that shows each stage it is told of as one bar; transformers' own bars are off meanwhile."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def report(stage: str, done: int, total: int, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, text="")
            progress.update(tasks[stage], completed=done, text=text)

        logging.disable_progress_bar()
        try:
            yield report
        finally:
            logging.enable_progress_bar()
