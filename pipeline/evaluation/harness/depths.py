"""How deep the tokens of each task went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TaskDepth:
    """Sums over a task's requests. A text that two requests share is counted for both, as if each were alone."""

    target_tokens: int = 0
    """Tokens that were scored, or written."""
    target_depths: int = 0
    """The depths of the tokens that predict them: the last one read before each."""
    read_tokens: int = 0
    """All tokens read, contexts included."""
    read_depths: int = 0

    def add(self, target_tokens: int, target_depths: int, read_tokens: int, read_depths: int) -> None:
        self.target_tokens += target_tokens
        self.target_depths += target_depths
        self.read_tokens += read_tokens
        self.read_depths += read_depths

    @property
    def of_targets(self) -> float:
        """Mean depth behind a scored or written token."""
        return self.target_depths / max(self.target_tokens, 1)

    @property
    def of_all(self) -> float:
        """Mean depth of a token that was read."""
        return self.read_depths / max(self.read_tokens, 1)
