"""All suites by name."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.evaluation.suite import Suite
from pipeline.evaluation.tasks import Tasks
from pipeline.evaluation.validation import Validation

SUITES: dict[str, type[Suite]] = {suite.name: suite for suite in (Validation, Tasks)}


def suite_named(name: str) -> Suite:
    """`UserError` for one that there is not."""
    if name not in SUITES:
        raise UserError(f"there is no evaluation suite {name!r}: take {', '.join(SUITES)}")
    return SUITES[name]()
