"""The consoles that stages print to, so that progress lines and messages do not cut each other."""

from __future__ import annotations

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType

console = Console(highlight=False, soft_wrap=True)
error_console = Console(highlight=False, soft_wrap=True, stderr=True)


def print_between(message: str) -> None:
    """Print a line where another process may draw its progress line on the same terminal, as a training does.

    What stands in the line is erased; whoever drew it draws it again below, since it always begins at the left edge.
    """
    with console:  # one write
        if console.is_terminal:
            console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
        console.print(message)
