"""The one console that stages print to, so that progress lines and messages do not cut each other."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
