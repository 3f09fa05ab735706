"""`adaponder release --verify`: is a release that stands somewhere, to the byte, the one that was verified."""

from __future__ import annotations

from pathlib import Path

from pipeline.console import console, error_console
from pipeline.durable import sha256_file
from pipeline.errors import UserError, WorldError
from pipeline.release.provenance import PROVENANCE_NAME, REVISIONS, Provenance, is_as_written, read_provenance


def verify_and_tell(folder: Path) -> None:
    """Compare every file with provenance.json, that file included, in `folder` and its revisions.

    Each file that is not what it was is one line on stderr. Raises `UserError` for a folder that holds no release,
    `WorldError` when anything is wrong.
    """
    if not (folder / PROVENANCE_NAME).is_file():
        raise UserError(f"--verify {folder}: it holds no {PROVENANCE_NAME}, so it is no release")
    folders = [folder, *sorted(path for path in (folder / REVISIONS).glob("*") if path.is_dir())]
    wrong = 0
    for release in folders:
        lines = wrong_files(release)
        wrong += len(lines)
        for line in lines:
            error_console.print(line, markup=False)
        if not lines:
            provenance = read_provenance(release)
            assert provenance is not None
            note = "" if provenance.own_sha256 else f"; {PROVENANCE_NAME} itself has no hash, it is of an older version"
            console.print(
                f"release: {release}: step {provenance.identity.step:,}, {len(provenance.files) + 1} files are as they "
                f"were verified{note}",
                markup=False,
            )
    if wrong:
        raise WorldError(f"{folder} is not the release that was verified: {wrong} {'file' if wrong == 1 else 'files'}")


def wrong_files(release: Path) -> list[str]:
    """A line for each file that is changed, missing or not of the release."""
    path = release / PROVENANCE_NAME
    try:
        provenance: Provenance | None = read_provenance(release)
    except WorldError:
        return [f"{path} is damaged: nothing else can be compared"]
    if provenance is None:
        return [f"{path} is missing: nothing else can be compared"]
    if not is_as_written(path.read_bytes(), provenance):
        return [f"{path} was changed: nothing else can be compared"]
    found = {entry.name: entry for entry in release.iterdir() if entry.name not in (PROVENANCE_NAME, REVISIONS)}
    lines = []
    for name, sha256 in sorted(provenance.files.items()):
        if name not in found or not found[name].is_file():
            lines.append(f"{release / name} is missing")
        elif (digest := sha256_file(found[name])) != sha256:
            lines.append(f"{release / name} was changed: its SHA-256 is {digest[:12]}, not {sha256[:12]}")
    lines += [
        f"{entry} is no file of the release" for name, entry in sorted(found.items()) if name not in provenance.files
    ]
    return lines
