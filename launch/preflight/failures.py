"""What failed in a preflight, read from its report: for those who were not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def failures_in(report: dict[str, Any]) -> list[str]:
    """One line each, of the report's JSON."""
    return [
        f"{check['name']}: {finding['message']}"
        for check in report["checks"]
        for finding in check["findings"]
        if finding["verdict"] == "failed"
    ]


def is_users(report: dict[str, Any]) -> bool:
    """Whether all that failed is the user's mistake."""
    findings = [finding for check in report["checks"] for finding in check["findings"]]
    return all(finding["user"] for finding in findings if finding["verdict"] == "failed")


def failures_of(path: Path) -> list[str]:
    """The same of a file; nothing where it cannot be read."""
    try:
        return failures_in(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        return []
