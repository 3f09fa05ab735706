"""Errors by whose they are: the user's, or the world's. Anything else is a bug and keeps its traceback.

The command line turns a `UserError` into one line and exit code 2, a `WorldError` into one line and exit code 1.
"""

from __future__ import annotations


class AdaPonderError(Exception):
    """An error whose message is meant for the operator: what is wrong, where, and what to do."""

    exit_code = 1


class UserError(AdaPonderError):
    """Something the user can change: a recipe, an argument, a path. Nothing was started."""

    exit_code = 2


class WorldError(AdaPonderError):
    """Something outside failed: a disk, a host, a file. What was complete is kept; the same command continues."""

    exit_code = 1
