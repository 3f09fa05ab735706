"""What a suite of the evaluation is: settings that identify it, a judgement of a checkpoint, and its numbers by name.

The stage (`pipeline.evaluation.stage`) does the rest for all of them: once for each checkpoint, whole or not at all,
and told to MLflow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel
from rich.table import Table

from pipeline.data_read import DataRead, shards_read
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.subject import Subject
from pipeline.recipe import Recipe

METRICS_NAME = "metrics.json"


class Suite(ABC):
    """One kind of judgement, `adaponder evaluate --suite NAME`."""

    name: ClassVar[str]
    found: ClassVar[type[BaseModel]]
    """The content of metrics.json; has a field `identity`."""

    @abstractmethod
    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """What of the recipe decides the numbers; JSON. Raises `UserError` for what cannot be judged so."""

    @abstractmethod
    def judge(self, subject: Subject, identity: Identity, output: Path) -> Any:
        """Judge; returns `found`. Figures, pages and tables for people go into `output`, a folder of its own.

        Raises `UserError` for shards or settings that do not fit, `WorldError` for what cannot be read.
        """

    @abstractmethod
    def named(self, found: Any, subject: Subject) -> dict[str, float]:
        """Numbers by name, for MLflow, where `eval/SUITE/` comes before each."""

    def reads(self, found: Any, subject: Subject) -> list[DataRead]:
        """The data that it was found on, for MLflow: here the first validation rows of each source."""
        limit = found.identity.settings["rows_per_source"]
        rows = sum(subject.validation_rows(limit).values())
        tags = {"adaponder.rows_per_source": str(limit), "adaponder.rows": str(rows)}
        return [shards_read(subject.folder, subject.manifest, "validation", tags)]

    @abstractmethod
    def tables(self, found: Any) -> list[Table]:
        """For the terminal."""
