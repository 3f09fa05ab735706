"""The hash of the code that makes reports: a page that other code made is made anew."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pipeline.durable import sha256_file, sha256_json


@cache
def code_sha256() -> str:
    """Of every file of this package."""
    return sha256_json({path.name: sha256_file(path) for path in Path(__file__).parent.glob("*.py")})
