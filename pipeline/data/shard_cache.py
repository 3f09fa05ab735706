"""Shards on an object store, by way of a bounded folder on a local disk that all ranks of a machine share.

    CACHE/NAME-HASH/manifest.json, tokenizer/       of the URL whose last part is NAME
    CACHE/NAME-HASH/SHA256-train-000000.tar, .idx   SHA256: start of the content's, so that a remade data set is another

A file has its name only when it is whole and its hash was that of the manifest. It is fetched under a lock of its own,
so that two ranks never fetch the same file. What was used longest ago goes when the cache is full, except what a
process has open just now: readers hold a shared lock on what they read (and should a file go all the same, Linux keeps
its content for those who have it open). The kernel gives every lock back when a process ends, however it ends.

A file is flushed to disk before it takes its name, so that after a power cut, too, one of the right size is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pipeline.data.cache_room import LOCKS, default_root, locked, make_room, no_locks, require_locks, require_own
from pipeline.data.manifest import MANIFEST_NAME, ShardEntry, read_manifest
from pipeline.data.order import Shuffle
from pipeline.data.shard_source import (
    OPEN_SHARDS,
    index_name,
    open_whole,
    require_index,
    require_names,
    require_size,
)
from pipeline.durable import PARTIAL_SUFFIX, fsync_file, fsync_folder, sha256_file
from pipeline.errors import UserError, WorldError

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What may stand beside tokenizer.json."""
FETCHED_TOGETHER = 8
"""Downloads at a time in one process."""
_SILENT_SECONDS = 60.0
_HASH_LETTERS = 16


def is_url(shards: str) -> bool:
    """Whether `data.shards` names an object store and not a folder."""
    return "://" in shards


def cache_folder(url: str, cache: str) -> Path:
    """Where files of the data set at `url` lie on this machine; `cache` is the recipe's data.cache.

    The system's temporary folder is every user's, so each has a cache of their own there.
    """
    root = Path(cache).expanduser() if cache else default_root()
    name = re.sub(r"[^A-Za-z0-9._-]", "-", url.rstrip("/").rpartition("/")[2]) or "shards"
    return root.absolute() / f"{name}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


def room_note(url: str, cache_bytes: int, shuffle: Shuffle, shards: Sequence[ShardEntry]) -> str | None:
    """What to tell the operator of a shuffled training set that the cache cannot hold; None where all is well."""
    needed = sum(shard.bytes for shard in shards)
    if not is_url(url) or shuffle == "none" or needed <= cache_bytes:
        return None
    return (
        f"data.shuffle {shuffle} reads from all {len(shards)} shards all the time, {needed / 1e9:,.1f} GB, but "
        f"data.cache_bytes has room for {cache_bytes / 1e9:,.1f} GB: shards will be fetched again and again; make room "
        "for all of them, or take data.shuffle none"
    )


class CachedShards:
    """The files of the data set at an fsspec URL. A `ShardSource`; safe for several threads and processes."""

    def __init__(self, url: str, folder: Path, cache_bytes: int) -> None:
        """`folder` is `cache_folder(url, ...)`; `cache_bytes` bounds all data sets beside it together.

        Fetches manifest.json and, where it is not here yet, the tokenizer: after that `folder` can be read like a
        folder of shards without shards. Raises `UserError` for a URL that leads to no manifest or that no installed
        package knows, and for a folder that cannot be the cache, `WorldError` naming the URL that cannot be fetched.
        """
        self._url = url.rstrip("/")
        self._folder = folder
        self._cache_bytes = cache_bytes
        self._files, self._root = _file_system(self._url)
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_own(folder.parent)
            (folder / LOCKS).mkdir(parents=True, exist_ok=True)
            require_locks(folder / LOCKS)
        except OSError as error:
            raise UserError(f"data.cache: {error.filename} cannot be written: {error.strerror}") from error
        self._fetch_manifest()
        self._fetch_tokenizer()
        self.most_open = OPEN_SHARDS
        """Files that a reader may keep open; fewer where they are large, so that what all ranks of this machine keep
        open is at most half the cache."""

    def name(self, shard: ShardEntry) -> str:
        return f"{self._url}/{shard.name}"

    def require(self, shards: Sequence[ShardEntry]) -> None:
        """Compare names and sizes with the store's own listing; plain http has none, there the download tells."""
        largest = max((shard.bytes for shard in shards), default=1)
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.most_open = max(1, min(OPEN_SHARDS, self._cache_bytes // (2 * largest * ranks)))
        if self._url.startswith(("http://", "https://")):
            return
        try:
            listed: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
        except Exception as error:  # every file system has errors of its own
            raise WorldError(f"{self._url} cannot be listed: {_told(error)}") from error
        sizes = {entry["name"].rpartition("/")[2]: entry.get("size") for entry in listed}
        wanted = {shard.name: shard.bytes for shard in shards} | {index_name(shard.name): None for shard in shards}
        require_names(self._url, wanted, set(sizes))
        for shard in shards:
            size = sizes[shard.name]
            if size is not None:
                require_size(self.name(shard), size, shard.bytes)

    def are_here(self, shards: Sequence[ShardEntry]) -> bool:
        return all(_is_whole(self._tar(shard), shard.bytes) for shard in shards)

    def prepare(self, shards: Sequence[ShardEntry]) -> None:
        """Fetch what is not here; raises `WorldError` naming the URL, as `open` does."""
        absent = [shard for shard in shards if not _is_whole(self._tar(shard), shard.bytes)]
        if len(absent) < 2 or sum(shard.bytes for shard in absent) > self._cache_bytes // 2:
            return  # `open` fetches them one by one, each when there is room for it
        with ThreadPoolExecutor(max_workers=FETCHED_TOGETHER, thread_name_prefix="shards") as threads:
            try:
                for fetched in as_completed([threads.submit(self._fetch_shard, shard) for shard in absent]):
                    fetched.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)  # what runs is waited for, as it would have been
                raise

    def index(self, shard: ShardEntry) -> bytes:
        path = self._folder / f"{shard.index_sha256[:_HASH_LETTERS]}-{index_name(shard.name)}"
        url = f"{self._url}/{index_name(shard.name)}"
        for _ in range(5):  # once more where the file here is none any more: it went, or a power cut emptied it
            with contextlib.suppress(FileNotFoundError):
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == shard.index_sha256:
                    _touch(path)
                    return content
                path.unlink(missing_ok=True)
            self._fetch(url, path, lambda found: require_index(url, shard, found.read_bytes()), path.exists)
        content = path.read_bytes()
        require_index(str(path), shard, content)
        return content

    def open(self, shard: ShardEntry) -> int:
        path = self._tar(shard)
        while True:
            self._fetch_shard(shard)
            try:
                descriptor = open_whole(path, shard)
            except WorldError as error:
                if isinstance(error.__cause__, FileNotFoundError):  # another rank needed the room
                    continue
                raise
            try:
                # Held until the descriptor is closed: what is open does not go.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # it is just going
                os.close(descriptor)
                continue
            except OSError as error:
                os.close(descriptor)
                raise no_locks(path, error) from error
            _touch(path)
            return descriptor

    def _tar(self, shard: ShardEntry) -> Path:
        return self._folder / f"{shard.sha256[:_HASH_LETTERS]}-{shard.name}"

    def _fetch_shard(self, shard: ShardEntry) -> None:
        path, url = self._tar(shard), self.name(shard)

        def check(found: Path) -> None:
            require_size(url, found.stat().st_size, shard.bytes)
            if (digest := sha256_file(found)) != shard.sha256:
                raise WorldError(f"{url} has SHA-256 {digest[:12]}, its manifest says {shard.sha256[:12]}: restore it")

        if not _is_whole(path, shard.bytes):
            self._fetch(url, path, check, lambda: _is_whole(path, shard.bytes), shard.bytes)

    def _fetch_manifest(self) -> None:
        # Always: it says what the data set is now.
        path, url = self._folder / MANIFEST_NAME, f"{self._url}/{MANIFEST_NAME}"
        try:
            self._fetch(url, path, lambda found: None, lambda: False)
        except WorldError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise UserError(
                    f"data.shards: {url} is missing: these shards are not finished, or the URL is wrong"
                ) from error
            raise

    def _fetch_tokenizer(self) -> None:
        expected = read_manifest(self._folder).tokenizer.sha256
        folder = self._folder / "tokenizer"
        last = folder / "tokenizer.json"
        if last.is_file() and sha256_file(last) == expected:
            return
        folder.mkdir(exist_ok=True)
        for name in TOKENIZER_FILES:
            try:
                self._fetch(f"{self._url}/tokenizer/{name}", folder / name, lambda found: None, lambda: False)
            except WorldError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise

        def check(found: Path) -> None:
            if sha256_file(found) != expected:
                raise WorldError(f"{self._url}/tokenizer/tokenizer.json is not the one of the manifest: restore it")

        self._fetch(f"{self._url}/tokenizer/tokenizer.json", last, check, lambda: False)

    def _fetch(
        self, url: str, path: Path, check: Callable[[Path], None], is_there: Callable[[], bool], size: int = 0
    ) -> None:
        """Bring `url` to `path`, whole or not at all, unless it came while this waited for another rank.

        What does not pass `check`, or breaks off, is fetched a second time; then `WorldError` naming the URL.
        """
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        with locked(self._folder / LOCKS / f"{path.name}.lock"):
            if is_there():
                return
            make_room(self._folder.parent, self._cache_bytes, path, size)
            for last_try in (False, True):
                try:
                    self._download(url, partial)
                    check(partial)
                    break
                except WorldError as error:
                    partial.unlink(missing_ok=True)
                    if last_try or isinstance(error.__cause__, FileNotFoundError) or _is_full(error.__cause__):
                        raise
            fsync_file(partial)
            os.replace(partial, path)
            fsync_folder(path.parent)
            make_room(self._folder.parent, self._cache_bytes, path)  # others may have come at the same time

    def _download(self, url: str, partial: Path) -> None:
        try:
            self._files.get_file(self._root + url.removeprefix(self._url), str(partial))
        except Exception as error:  # every file system has errors of its own
            if _is_full(error):
                raise WorldError(
                    f"{partial.parent} is full while {url} comes to it: lower data.cache_bytes, or make room"
                ) from error
            raise WorldError(f"{url} cannot be fetched: {_told(error)}") from error


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and what the URL is called there.

    `UserError` where no installed package knows the protocol.
    """
    # Imported here: only runs on object stores need it.
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # aiohttp's own limit is five minutes for a whole download; what counts is that it goes on.
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_SECONDS, sock_read=_SILENT_SECONDS)
        }
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise UserError(f"data.shards: {url} cannot be opened: {_told(error)}") from error


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _touch(path: Path) -> None:
    """Note a use, for what goes first."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
