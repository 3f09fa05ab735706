"""Is the run's folder the same one on all nodes? What rank 0 writes is read by all, and what each writes by rank 0."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.preflight.check import Check, Context, Finding, Told
from pipeline.durable import write_text

_SEEN_SECONDS = 60.0
"""Until a file must have appeared: network file systems keep listings for up to a minute."""


def look(context: Context) -> dict[str, Any]:
    """Whether this rank sees rank 0's file, and rank 0 those of all nodes."""
    meeting, folder = context.meeting, context.folder.path
    folder.mkdir(parents=True, exist_ok=True)
    nonce = meeting.from_rank_0("shared_folder/nonce", secrets.token_hex(8))
    own = _file(folder, nonce, meeting.rank)
    if meeting.rank == 0 or meeting.me.local_rank == 0:
        write_text(own, nonce)
    seen, missing, began = True, [], time.monotonic()
    try:
        if meeting.me.local_rank == 0:
            limit = min(_SEEN_SECONDS, context.settings.timeout_seconds / 4)
            seen = _appears(_file(folder, nonce, 0), nonce, began + limit)
            if meeting.rank == 0:
                firsts = [place for place in meeting.places if place.local_rank == 0]
                missing = [
                    place.rank
                    for place in firsts
                    if not _appears(_file(folder, nonce, place.rank), nonce, began + limit)
                ]
        seconds = time.monotonic() - began
        meeting.tell("shared_folder/seen", None)  # nobody removes what another still looks for
    finally:
        own.unlink(missing_ok=True)
    return {"seen": seen, "missing": missing, "seconds": seconds}


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    folder, places = context.folder.path, [each.place for each in told]
    blind = {each.place.host for each in told if not each.seen["seen"]}
    blind |= {places[rank].host for rank in told[0].seen["missing"]}
    if blind:
        return [
            Finding(
                "failed",
                f"{folder} on {host} is not the folder that {places[0].host} has under that name: mount the shared "
                "file system there, or give --runs a folder that all nodes share",
            )
            for host in sorted(blind)
        ]
    nodes = context.meeting.nodes
    if nodes == 1:
        return [Finding("ok", f"{folder}: one node, nothing to share")]
    slowest = max(each.seen["seconds"] for each in told)
    return [Finding("ok", f"{folder} is the same on {nodes} nodes, files are seen after {slowest:.1f} s")]


def _file(folder: Path, nonce: str, rank: int) -> Path:
    return folder / f".preflight-{nonce}-{rank:04d}"


def _appears(path: Path, content: str, deadline: float) -> bool:
    while True:
        try:
            if path.read_text(encoding="utf-8") == content:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


CHECK = Check("shared_folder", look, judge)
