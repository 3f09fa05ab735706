"""All suites by name."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.evaluation.policies.suite import PolicySuite
from pipeline.evaluation.pondering.suite import DepthSuite
from pipeline.evaluation.speed import SpeedSuite
from pipeline.evaluation.suite import Suite
from pipeline.evaluation.tasks import Tasks
from pipeline.evaluation.validation import Validation
from pipeline.evaluation.windows import WindowSuite

_ALL: tuple[type[Suite], ...] = (Validation, WindowSuite, DepthSuite, PolicySuite, Tasks, SpeedSuite)
SUITES = {suite.name: suite for suite in _ALL}


def suite_named(name: str) -> Suite:
    """`UserError` for one that there is not."""
    if name not in SUITES:
        raise UserError(f"there is no evaluation suite {name!r}: take {', '.join(SUITES)}")
    return SUITES[name]()
