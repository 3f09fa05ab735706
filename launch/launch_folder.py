"""What a launch leaves in runs/NAME/launch/TARGET/: all that is needed to start the same thing again, and to know what
it was. The recipe, the scripts or manifests, versions of all packages, the revision of the source and what differs
from it.

The folder appears whole or not at all, and takes the place of the one before.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pipeline
from launch.targets.launching import Launch
from pipeline.durable import PARTIAL_SUFFIX, repair_folder, replace_folder, write_json, write_text
from pipeline.run_folder import write_resolved_recipe

VERSIONS, REVISION, DIFFERENCE = "versions.json", "revision.json", "source.diff"
_SOURCE = ("pipeline", "tokenization", "launch", "ds_configs")
"""What runs. Files that git does not know are kept from these folders only: elsewhere they may be anything, a file of
passwords too."""
_LONGEST_NEW_FILE = 1 << 20
"""Bytes; longer ones are named and not kept."""


def write_launch(launch: Launch, files: Mapping[str, str]) -> list[Path]:
    """Write the launch's folder; returns its files. Scripts can be executed."""
    folder = launch.path
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    repair_folder(folder)
    for name, text in files.items():
        write_text(partial / name, text)
        if text.startswith("#!"):
            os.chmod(partial / name, 0o755)
    write_resolved_recipe(launch.recipe, partial / launch.recipe_file.name)
    write_json(partial / VERSIONS, all_versions())
    revision, difference = source_revision(Path(pipeline.__file__).parents[1])
    write_json(partial / REVISION, revision)
    write_text(partial / DIFFERENCE, difference)
    replace_folder(partial, folder)
    return sorted(folder.iterdir())


def all_versions() -> dict[str, str]:
    """Python's version and that of every package installed here, by name."""
    found = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    return {"python": platform.python_version(), **dict(sorted(found.items(), key=lambda item: item[0].lower()))}


def source_revision(project: Path) -> tuple[dict[str, Any], str]:
    """The commit that the source in `project` is at, and a patch from there to the source as it is.

    New files of the source are part of the patch, others that git does not know are named. Of a project that is no git
    checkout only that is told.
    """
    if _git(project, "ls-files", "--error-unmatch", "pipeline/__init__.py") is None:
        return {"commit": None, "note": "not a git checkout; versions.json tells the version of adaponder"}, ""
    commit = (_git(project, "rev-parse", "HEAD") or "").strip()
    difference = _git(project, "diff", "--binary", "HEAD") or ""
    new = (_git(project, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    left_out = []
    for name in filter(None, new):
        path = project / name
        if name.split("/")[0] not in _SOURCE or not path.is_file() or path.stat().st_size > _LONGEST_NEW_FILE:
            left_out.append(name)
        else:
            difference += _git(project, "diff", "--binary", "--no-index", "--", os.devnull, name, differs=True) or ""
    return {"commit": commit, "changed": bool(difference), "not_kept": left_out}, difference


def _git(project: Path, *arguments: str, differs: bool = False) -> str | None:
    """What git says, None where it fails; differs: exit code 1 means that there is a difference."""
    try:
        done = subprocess.run(["git", *arguments], cwd=project, capture_output=True, check=False)
    except OSError:
        return None
    fine = done.returncode == 0 or (differs and done.returncode == 1)
    return done.stdout.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode() if fine else None
