"""Are the shards what their manifest says? Sizes, indexes and the tokenizer always; contents of a sample, or of all.

The ranks share the work; on a shared file system that is also what a training will ask of it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.preflight.check import Check, Context, Finding, Told
from pipeline.data.manifest import MANIFEST_NAME, Manifest, ShardEntry, manifest_hash, read_manifest
from pipeline.data.shard_source import ShardSource
from pipeline.durable import sha256_file
from pipeline.errors import AdaPonderError, UserError, WorldError

_TOKENIZER = Path("tokenizer") / "tokenizer.json"
_BLOCK = 1 << 22
_NAMED = 8


def look(context: Context) -> dict[str, Any] | None:
    """Problems that this rank finds; None where there are no shards and none are needed yet."""
    folder = context.folder
    if not context.tokenized and not folder.shards.exists():
        return None
    source = folder.open_shards()
    try:
        manifest = read_manifest(folder.shards)
    except UserError:
        if not context.tokenized and not (folder.shards / MANIFEST_NAME).is_file():
            return None
        raise
    meeting, problems = context.meeting, []
    entries = [shard for split in manifest.splits.values() for shard in split.shards]
    if meeting.rank == 0:
        problems += _of_tokenizer(folder.shards, manifest)
        problems += _raised(lambda: source.require(entries))
    share = _share(context, entries)
    began, read = time.perf_counter(), 0
    for shard in share:
        found = _raised(lambda shard=shard: source.index(shard))
        found += _raised(lambda shard=shard: _require_content(source, shard))
        problems += found
        read += 0 if found else shard.bytes
    return {
        "problems": problems,
        "manifest": manifest_hash(manifest),
        "shards": len(share),
        "of": len(entries),
        "bytes_per_second": read / max(1e-6, time.perf_counter() - began),
    }


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    seen = [(each.place, each.seen) for each in told if each.seen is not None]
    if not seen:
        return [Finding("skipped", "not tokenized yet")]
    findings = [
        Finding(
            "failed", f"{problem} (read by {place}): `adaponder data verify {context.folder.shards}` reads them all"
        )
        for place, found in seen
        for problem in found["problems"]
    ]
    if len(findings) > _NAMED:
        findings = [*findings[:_NAMED], Finding("failed", f"and {len(findings) - _NAMED} more")]
    hashes = {found["manifest"]: str(place) for place, found in seen}
    if len(hashes) > 1:
        listed = ", ".join(f"{digest[:12]} on {place}" for digest, place in hashes.items())
        findings.append(Finding("failed", f"the manifests differ: {listed}: these are not the same shards"))
    if findings:
        return findings
    count, total = sum(found["shards"] for _, found in seen), seen[0][1]["of"]
    slowest = min(seen, key=lambda pair: pair[1]["bytes_per_second"] if pair[1]["shards"] else float("inf"))
    speed = f", slowest {slowest[1]['bytes_per_second'] / 1e6:,.0f} MB/s by {slowest[0]}" if count else ""
    text = f"{count} of {total} read and as the manifest says, all {total} there{speed}"
    return [Finding("ok", text, {"read": count, "of": total, "manifest": seen[0][1]["manifest"]})]


def _share(context: Context, entries: list[ShardEntry]) -> list[ShardEntry]:
    """This rank's: of all, those that follow each other at the distance of the ranks; or one, another one each time."""
    ranks, rank = len(context.meeting.places), context.meeting.rank
    if context.settings.shards == "all":
        return entries[rank::ranks]
    first = context.meeting.from_rank_0("shards/first", time.time_ns() % max(1, len(entries)))
    return [entries[(first + rank) % len(entries)]] if rank < len(entries) else []


def _require_content(source: ShardSource, shard: ShardEntry) -> None:
    """`WorldError` or OSError where the shard is not what the manifest says."""
    source.prepare([shard])
    descriptor, digest = source.open(shard), hashlib.sha256()
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != shard.sha256:
        raise WorldError(f"{source.name(shard)} is corrupt: its sha256 is not the manifest's; restore it")


def _of_tokenizer(shards: Path, manifest: Manifest) -> list[str]:
    path = shards / _TOKENIZER
    try:
        if sha256_file(path) != manifest.tokenizer.sha256:
            return [f"{path} is not the tokenizer that made these shards: its sha256 is not the manifest's"]
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    return []


def _raised(do: Any) -> list[str]:
    try:
        do()
    except AdaPonderError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename or 'a shard'} cannot be read: {error.strerror or error}"]
    return []


CHECK = Check("shards", look, judge)
