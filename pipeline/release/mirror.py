"""`adaponder release --to URL`: a copy of a release wherever fsspec writes, whole or not at all.

provenance.json is what makes a folder a release. It goes before the first file changes and comes last, when every file
has been read back and has its hash. Meanwhile copying.json names all files of the old release and the new, so that the
same command, after a kill, knows which are its own; files of others make it refuse the place.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.console import console
from pipeline.durable import sha256_file
from pipeline.errors import UserError, WorldError
from pipeline.release.provenance import PROVENANCE_NAME, REVISIONS, file_hashes
from pipeline.release.revision import MAIN

MARKER_NAME = "copying.json"
_BLOCK = 1 << 22


class Mirror:
    """A place for one revision of a release."""

    def __init__(self, url: str, revision: str) -> None:
        """`UserError` for a URL that holds secrets or that no installed package knows; nothing is asked yet."""
        rest = url.partition("://")[2]
        if not rest or "?" in url or "@" in rest.partition("/")[0]:
            raise UserError(
                "--to: a URL is expected (s3://bucket/folder, file:///folder) without a user name, password or query: "
                "give those to fsspec by its configuration (~/.config/fsspec, FSSPEC_...) or the store's own variables "
                "(AWS_...)"
            )
        url = url.rstrip("/")
        self.url = url if revision == MAIN else f"{url}/{REVISIONS}/{revision}"
        import fsspec

        try:
            # Listings change while we write: none is kept.
            self._files, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError, TypeError) as error:
            raise UserError(f"--to: {self.url} cannot be opened: {_told(error)}") from error
        self._root = self._root.rstrip("/")

    def publish(self, release: Path) -> None:
        """Make the place the same as the folder `release`, provenance.json last.

        Raises `UserError` for a place with files that are of no release, `WorldError` naming the URL that is not taken
        or comes back as another file.
        """
        wanted = {**file_hashes(release), PROVENANCE_NAME: sha256_file(release / PROVENANCE_NAME)}
        try:
            self._publish(release, wanted)
        except (UserError, WorldError):
            raise
        except Exception as error:  # every file system has errors of its own
            raise WorldError(
                f"{self.url} does not take the release: {_told(error)}; the same command continues"
            ) from error

    def _publish(self, release: Path, wanted: dict[str, str]) -> None:
        self._files.makedirs(self._root, exist_ok=True)
        found = self._listed()
        own = self._own(found)
        if foreign := sorted(found - own - set(wanted) if own else found):
            raise UserError(f"--to: {self.url} holds {foreign[0]}, which is of no release: take an empty place")
        different = [name for name in wanted if name not in found or self._sha256(name) != wanted[name]]
        superfluous = sorted((own & found) - set(wanted) - {MARKER_NAME})
        if not different and not superfluous:
            self._remove(MARKER_NAME, found)
            console.print(f"release: {self.url} has it already, nothing to do", markup=False)
            return
        self._write(MARKER_NAME, json.dumps(sorted({*own, *wanted} - {MARKER_NAME})).encode())
        self._remove(PROVENANCE_NAME, found)
        for name in superfluous:
            self._files.rm_file(self._path(name))
        last = {PROVENANCE_NAME}
        for name in [*(name for name in different if name not in last), *last]:
            self._files.put_file(str(release / name), self._path(name))
            if (sha256 := self._sha256(name)) != wanted[name]:
                raise WorldError(
                    f"{self.url}/{name} comes back with SHA-256 {sha256[:12]}, the release's is {wanted[name][:12]}; "
                    "the same command tries again"
                )
        self._files.rm_file(self._path(MARKER_NAME))
        count = len(set(different) | last)
        console.print(f"release: {self.url} ({count} files copied, {len(wanted)} compared)", markup=False)

    def _own(self, found: set[str]) -> set[str]:
        """Files there that a release put there, or was about to; all of them, where a copy is under way."""
        own: set[str] = set()
        if MARKER_NAME in found:
            own |= {MARKER_NAME, PROVENANCE_NAME, *self._read_json(MARKER_NAME)}
        if PROVENANCE_NAME in found:
            content = self._read_json(PROVENANCE_NAME)
            files = content.get("files") if isinstance(content, dict) else None
            own |= {PROVENANCE_NAME, *(files if isinstance(files, dict) else {})}
        return own

    def _read_json(self, name: str) -> Any:
        with self._files.open(self._path(name), "rb") as file:
            content = file.read()
        try:
            return json.loads(content)
        except ValueError:  # cut short while it was written, or changed since
            return []

    def _listed(self) -> set[str]:
        """Files of the place itself; what lies below it, as revisions do, is not looked at."""
        try:
            entries: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
        except FileNotFoundError:  # a store without folders, and nothing in it
            return set()
        return {entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "file"}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write(self, name: str, content: bytes) -> None:
        with self._files.open(self._path(name), "wb") as file:
            file.write(content)

    def _remove(self, name: str, found: set[str]) -> None:
        if name in found:
            self._files.rm_file(self._path(name))

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._files.open(self._path(name), "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
