"""`adaponder release --push OWNER/NAME`: a release as a repository of the Hugging Face hub, a revision as its branch.

A large upload is several commits there. So provenance.json, which makes a folder a release, goes before the first of
them and comes with the last; then the hub's own hashes are compared with the files'. The token is the one that
huggingface_hub finds (`hf auth login`, HF_TOKEN); it is on no command line and in no message.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipeline.console import console
from pipeline.durable import sha256_file
from pipeline.errors import UserError, WorldError
from pipeline.release.provenance import PROVENANCE_NAME, REVISIONS, file_hashes
from pipeline.release.revision import MAIN

_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


class HubRepository:
    """A branch of a model repository."""

    def __init__(self, repo: str, revision: str) -> None:
        """`UserError` for what is no repository's name; nothing is asked yet."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise UserError(f"--push {repo}: {' '.join(str(error).split())}") from error
        if "/" not in repo:
            raise UserError(f"--push {repo}: OWNER/NAME is expected")
        self.repo = repo
        self.revision = revision
        self.told = f"{repo} (branch {revision})"

    def publish(self, release: Path) -> None:
        """Upload what differs from the folder `release`; `WorldError` when the hub does not take it."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # its own would cut through the stage's console
        api = HfApi()
        names = sorted([*file_hashes(release), PROVENANCE_NAME])
        try:
            api.create_repo(self.repo, exist_ok=True)
            if self.revision != MAIN:
                api.create_branch(self.repo, branch=self.revision, exist_ok=True)
            different = self._different(api, release, names)
            if not different:
                console.print(f"release: {self.told} on the hub has it already, nothing to do", markup=False)
                return
            message = f"Release {release.name if self.revision != MAIN else MAIN}"
            api.upload_folder(
                repo_id=self.repo,
                folder_path=release,
                revision=self.revision,
                ignore_patterns=[PROVENANCE_NAME, f"{REVISIONS}/*"],
                delete_patterns=[PROVENANCE_NAME, *_WEIGHTS],
                commit_message=message,
            )
            wrong = self._different(api, release, [name for name in names if name != PROVENANCE_NAME])
            if not wrong:
                api.upload_file(
                    path_or_fileobj=release / PROVENANCE_NAME,
                    path_in_repo=PROVENANCE_NAME,
                    repo_id=self.repo,
                    revision=self.revision,
                    commit_message=message,
                )
                wrong = self._different(api, release, names)
        except Exception as error:  # of the hub, of the network, of the client's own many libraries
            raise WorldError(
                f"the hub does not take {self.told}: {_told(error)}; the same command continues"
            ) from error
        if wrong:
            raise WorldError(f"{self.told} on the hub: {wrong[0]} is another file there; the same command tries again")
        console.print(f"release: {self.told} on the hub ({len(different)} files uploaded)", markup=False)

    def _different(self, api: Any, release: Path, names: list[str]) -> list[str]:
        """Those that the hub has not, or has otherwise, by its own hashes: SHA-256 of large files, git's of others."""
        there = {entry.path: entry for entry in api.get_paths_info(self.repo, names, revision=self.revision)}
        return [name for name in names if name not in there or not _is_same(there[name], release / name)]


def _is_same(entry: Any, path: Path) -> bool:
    if entry.lfs is not None:
        return entry.lfs.sha256 == sha256_file(path)
    return entry.blob_id == git_blob_id(path)


def git_blob_id(path: Path) -> str:
    """What git calls the file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _told(error: Exception) -> str:
    from huggingface_hub import get_token

    from pipeline.tracking.server import reason

    token = get_token()
    text = reason(error)
    return text.replace(token, "***") if token else text
