"""The evaluations that stand in a run's folder, whatever suites made them: numbers by name, tables, files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from pipeline.durable import PARTIAL_SUFFIX, sha256_file
from pipeline.errors import WorldError
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.standing import read_found
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suite import METRICS_NAME
from pipeline.evaluation.suites import SUITES, suite_named
from pipeline.reporting.content import Table
from pipeline.reporting.rich_table import taken_over
from tokenization.splits import validation_key

IMAGES = (".png", ".svg")


@dataclass(frozen=True)
class Standing:
    """One suite's finished evaluation of a checkpoint."""

    folder: Path
    identity: Identity
    named: Mapping[str, float]
    """Numbers by name, as in MLflow behind eval/SUITE/."""
    tables: list[Table] = field(default_factory=list)
    seconds: float | None = None
    device: str | None = None

    @property
    def suite(self) -> str:
        return self.folder.name

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def images(self) -> list[Path]:
        return [path for path in self.files() if path.suffix in IMAGES]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by name."""
        return {path.name: sha256_file(path) for path in self.files()}


def standing_in(folder: Path) -> tuple[list[Standing], list[str]]:
    """The evaluations in evaluation/CHECKPOINT, in the order of the suites, and what is wrong with others there."""
    if not folder.is_dir():
        return [], []
    names = {path.parent.name for path in folder.glob(f"*/{METRICS_NAME}")}
    known = [name for name in SUITES if name in names]
    # .partial and .old are evaluations that are just changing places.
    others = sorted(name for name in names - set(known) if not name.endswith((PARTIAL_SUFFIX, ".old")))
    found: list[Standing] = []
    wrong: list[str] = []
    for name in [*known, *others]:
        try:
            found.append(_of_suite(folder / name) if name in SUITES else _of_another(folder / name))
        except FileNotFoundError:  # it gives way to a new one this very moment
            continue
        except WorldError as error:
            wrong.append(str(error))
    return found, wrong


class _SourceKeys(dict[str, str]):
    """What each source is called in the names of numbers, without the shards that it stands in."""

    def __missing__(self, source: str) -> str:
        return validation_key(source).removeprefix("validation-")


@dataclass(frozen=True)
class _Names:
    """The part of a `Subject` that names numbers; a checkpoint may be gone while its evaluation stands."""

    source_keys: Mapping[str, str]


def _of_suite(folder: Path) -> Standing:
    suite = suite_named(folder.name)
    found = read_found(folder, suite.found)
    if found is None:
        raise FileNotFoundError(folder)
    named = suite.named(found, cast(Subject, _Names(_SourceKeys())))
    tables = [taken_over(table) for table in suite.tables(found)]
    seconds, device = getattr(found, "seconds", None), getattr(found, "device", None)
    return Standing(folder, found.identity, named, tables, seconds, device)


def _of_another(folder: Path) -> Standing:
    """Of a suite that this version does not have: its numbers by their place in metrics.json."""
    path = folder / METRICS_NAME
    try:
        content = json.loads(path.read_bytes())
        identity = Identity.model_validate(content["identity"])
        named = dict(_numbers({name: value for name, value in content.items() if name != "identity"}))
    except (ValueError, TypeError, KeyError, AttributeError, ValidationError) as error:
        raise WorldError(f"{path} is no evaluation: remove its folder, or evaluate again") from error
    return Standing(folder, identity, named)


def _numbers(content: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(content, bool) or content is None or isinstance(content, str):
        return []
    if isinstance(content, int | float):
        return [(prefix, float(content))]
    items = content.items() if isinstance(content, dict) else enumerate(content)
    return [pair for key, value in items for pair in _numbers(value, f"{prefix}/{key}" if prefix else str(key))]
