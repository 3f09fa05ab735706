"""The consoles that stages print to, so that progress lines and messages do not cut each other."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
error_console = Console(highlight=False, soft_wrap=True, stderr=True)
