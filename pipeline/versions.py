"""Versions of this project and of what decides its numbers; they stand in checkpoints, MLflow and releases."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("adaponder", "torch", "deepspeed", "transformers", "tokenizers", "webdataset", "mlflow", "numpy")


def installed_versions() -> dict[str, str]:
    """Package name to version, python included."""
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in _PACKAGES}}
