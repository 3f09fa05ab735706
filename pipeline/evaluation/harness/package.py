"""The package lm_eval, which is optional: whether it is there, and in which version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pipeline.errors import UserError

INSTALL = "pip install 'adaponder[tasks]', or pip install -c constraints.txt lm_eval"


def harness_version() -> str:
    """The installed lm_eval's; `UserError` with the command that installs it where there is none."""
    try:
        return version("lm_eval")
    except PackageNotFoundError as error:
        raise UserError(f"the suite tasks needs the package lm_eval, which is not installed: {INSTALL}") from error
