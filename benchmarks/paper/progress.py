"""How far a study is, as a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.console import console


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """A bar over `total` things, `done` of which stand already; what is given is called with what was last finished."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("", total=total, completed=done)

        def advance(finished: str) -> None:
            bars.update(task, advance=1, description=finished)

        yield advance
