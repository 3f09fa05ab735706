"""The parts become one data set: tails packed together, shards given their names, the manifest written last.

Killed at any moment and started again, it goes on: until `joined.json` stands nothing of the parts has been touched,
and from then on only renames are left, each of which is done or not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel
from rich.progress import track

from pipeline.console import console
from pipeline.data.manifest import InputEntry, ShardEntry, SourceCount, SplitEntry
from pipeline.durable import fsync_folder, repair_folder, replace_folder, sha256_json, whole_file, write_text
from pipeline.errors import WorldError
from pipeline.recipe_tokenize import TokenizeSection
from tokenization.encoding.tokenizer import token_dtype
from tokenization.part import check_part
from tokenization.part_folder import JOINED, REJECTED_NAME, PartResult, PartsFolder
from tokenization.plan import Part
from tokenization.shard_writer import ShardWriter
from tokenization.splits import MAX_VALIDATION_SETS, TRAIN_KEY, new_packer, too_many_validation_sets

TAILS = "tails"


class _Joined(BaseModel):
    """joined.json."""

    keys: list[str]
    """Of all parts."""
    splits: dict[str, SplitEntry]
    """For the manifest; shards still with their names in the parts' folder."""


def join_begun(shards: Path) -> list[str] | None:
    """Keys of the parts whose shards have got, or are getting, their final names; None where none has."""
    planned = PartsFolder(shards).path / JOINED
    return _Joined.model_validate_json(planned.read_bytes()).keys if planned.exists() else None


def join_parts(
    shards: Path, section: TokenizeSection, results: Sequence[PartResult], vocab_size: int, end_of_document_id: int
) -> dict[str, SplitEntry]:
    """Give every shard of every part its place in the data set; returns what the manifest says of the splits.

    Raises `WorldError` naming the file where a part is not what was written.
    """
    parts = PartsFolder(shards)
    planned = parts.path / JOINED
    if not planned.exists():
        _check_parts(parts, results)
        keys = sorted({key for result in results for key in result.splits}, key=lambda key: (key != TRAIN_KEY, key))
        if len(keys) > MAX_VALIDATION_SETS + 1:
            raise too_many_validation_sets(keys[-1])
        partial = parts.path / f"{TAILS}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        splits = {
            key: _join_split(parts, partial, section, results, key, vocab_size, end_of_document_id) for key in keys
        }
        repair_folder(parts.path / TAILS)
        replace_folder(partial, parts.path / TAILS)
        joined = _Joined(keys=[result.key for result in results], splits=splits)
        write_text(planned, joined.model_dump_json() + "\n")
    joined = _Joined.model_validate_json(planned.read_bytes())
    return {key: _name_shards(shards, parts, key, entry) for key, entry in joined.splits.items()}


def join_rejected(shards: Path, parts: Sequence[Part], results: Sequence[PartResult]) -> dict[str, int]:
    """Write rejected.jsonl, each record with its line in the file; returns the counts by reason."""
    folder = PartsFolder(shards)
    total: Counter[str] = Counter()
    lines_before: Counter[tuple[int, str]] = Counter()
    with whole_file(shards / REJECTED_NAME, "w") as file:
        for part, result in zip(parts, results, strict=True):
            total.update(result.rejected)
            firsts = []
            for piece, told in zip(part.slices, result.slices, strict=True):
                firsts.append(lines_before[part.source, piece.input])
                lines_before[part.source, piece.input] += told.records
            with open(folder.part(part.number) / REJECTED_NAME, encoding="utf-8") as own:
                for line in own:
                    record = json.loads(line)
                    number = record.pop("slice")
                    if record["line"] is not None:
                        record["line"] += firsts[number]
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return dict(sorted(total.items()))


def join_inputs(results: Sequence[PartResult]) -> list[InputEntry]:
    """All inputs in reading order, each once; of one that told piece by piece, the hash of its pieces' hashes."""
    told: dict[str, list[InputEntry]] = {}
    for result in results:
        for piece in result.slices:
            if piece.input is not None:
                told.setdefault(piece.input.path, []).append(piece.input)
    return [
        entries[0]
        if len(entries) == 1
        else InputEntry(
            path=path,
            bytes=sum(entry.bytes for entry in entries),
            sha256=sha256_json([entry.sha256 for entry in entries]),
        )
        for path, entries in told.items()
    ]


def _check_parts(parts: PartsFolder, results: Sequence[PartResult]) -> None:
    """Read all that the parts wrote once more; hashing leaves the interpreter's lock, so threads are enough."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as threads:
        checks = [threads.submit(check_part, parts, number, result) for number, result in enumerate(results)]
        try:
            for check in track(checks, description="checking parts", console=console, transient=True):
                check.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _join_split(
    parts: PartsFolder,
    tails: Path,
    section: TokenizeSection,
    results: Sequence[PartResult],
    key: str,
    vocab_size: int,
    end_of_document_id: int,
) -> SplitEntry:
    """Pack the split's tails; its shards still have the names that parts gave them, with their folder in front."""
    counts: dict[str, list[int]] = {}
    shards: list[ShardEntry] = []
    own = [(number, result.splits[key]) for number, result in enumerate(results) if key in result.splits]
    for number, split in own:
        for name, count in split.entry.sources.items():
            have = counts.setdefault(name, [0, 0, 0])
            for place, value in enumerate((count.documents, count.tokens, count.text_bytes)):
                have[place] += value
        where = parts.part(number).name
        shards += [entry.model_copy(update={"name": f"{where}/{entry.name}"}) for entry in split.entry.shards]
    packer = new_packer(section, token_dtype(vocab_size), end_of_document_id)
    padding = 0
    with ShardWriter(tails, f"{key}-tails", section.shard_bytes) as writer:
        for number, split in own:
            for chunk in packer.add_tail(parts.tail(number, key, split)):
                writer.write(chunk)
        for chunk in packer.finish():
            padding = chunk.padding_tokens
            writer.write(chunk)
    shards += [entry.model_copy(update={"name": f"{TAILS}/{entry.name}"}) for entry in writer.shards]
    return SplitEntry(
        split=own[0][1].entry.split,
        source=own[0][1].entry.source,
        rows=sum(shard.rows for shard in shards),
        padding_tokens=padding,
        sources={
            name: SourceCount(documents=documents, tokens=tokens, text_bytes=text_bytes)
            for name, (documents, tokens, text_bytes) in sorted(counts.items())
        },
        shards=shards,
    )


def _name_shards(shards: Path, parts: PartsFolder, key: str, entry: SplitEntry) -> SplitEntry:
    named: list[ShardEntry] = []
    for number, shard in enumerate(entry.shards):
        final = shards / f"{key}-{number:06d}.tar"
        here = parts.path / shard.name
        for suffix in (".idx", ".tar"):
            if here.with_suffix(suffix).exists():
                os.replace(here.with_suffix(suffix), final.with_suffix(suffix))
            elif not final.with_suffix(suffix).exists():
                raise WorldError(
                    f"{here.with_suffix(suffix)} is gone: remove {shards} to tokenize anew, or bring it back"
                )
        named.append(shard.model_copy(update={"name": final.name}))
    fsync_folder(shards)
    return entry.model_copy(update={"shards": named})
