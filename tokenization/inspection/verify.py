"""Whether a folder of shards is what its manifest says, down to the last token.

Everything is read once, shards in parallel threads (hashing and reading leave the interpreter free); what is kept of a
chunk is eight bytes. `verify_shard` reads one shard; here is what only all of them together tell.
"""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from tokenizers import Tokenizer

from pipeline.console import console
from pipeline.data.manifest import MANIFEST_NAME, Manifest, ShardEntry, SourceCount, SplitEntry, read_manifest
from pipeline.durable import PARTIAL_SUFFIX, sha256_file
from pipeline.errors import UserError, WorldError
from tokenization.inspection.stored_chunks import TOKENIZER_PATH
from tokenization.inspection.verify_shard import Expected, ShardFindings, verify_shard
from tokenization.part_folder import REJECTED_NAME

TOKENIZER_CONFIG_PATH = TOKENIZER_PATH.with_name("tokenizer_config.json")


@dataclass
class Verification:
    """What was found."""

    problems: list[str] = field(default_factory=list)
    """One line each: the file, the place in it, what is wrong."""
    uncounted: list[str] = field(default_factory=list)
    """Splits whose totals could not be compared, because a chunk of theirs could not be read."""
    shards: int = 0
    chunks: int = 0
    rows: int = 0
    tokens: int = 0
    """End-of-document marks included, padding excluded."""
    documents: int = 0


def verify_and_tell(shards: Path, workers: int | None) -> None:
    """Verify with a progress bar and print what was found; `WorldError` where there are problems."""
    if not shards.is_dir():
        raise UserError(f"{shards}: no such folder: give the folder that holds {MANIFEST_NAME}")
    total = sum(shard.bytes for split in read_manifest(shards).splits.values() for shard in split.shards)
    bar = Progress(
        TextColumn("verify"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("verify", total=total)
        found = verify(shards, workers, lambda read: bar.advance(task, read))
    for problem in found.problems:
        console.print(problem, markup=False)
    if found.problems:
        files = len({problem.split(":", 1)[0] for problem in found.problems})
        uncounted = f"; the totals of {', '.join(found.uncounted)} were not compared" if found.uncounted else ""
        raise WorldError(f"{shards}: {len(found.problems)} problems in {files} files, as listed{uncounted}")
    console.print(
        f"{shards} is sound: {found.shards:,} shards, {found.chunks:,} chunks, {found.rows:,} rows, "
        f"{found.tokens:,} tokens, {found.documents:,} documents",
        markup=False,
    )


def verify(shards: Path, workers: int | None = None, advance: Callable[[int], object] = lambda _: None) -> Verification:
    """Compare everything in the folder `shards` with its manifest.

    `workers` shards are read at once (None: one a core); `advance` is told the bytes read, from any thread. Damage is
    told in the result; raises `UserError` only where there is no manifest to compare with.
    """
    manifest = read_manifest(shards)
    found = Verification()
    found.problems += _manifest_problems(manifest)
    found.problems += _tokenizer_problems(shards, manifest)
    found.problems += _rejected_problems(shards, manifest)
    found.problems += _strangers(shards, manifest)
    named = [(key, entry) for key, split in manifest.splits.items() for entry in split.shards]
    # A name that leads elsewhere is told by `_manifest_problems`, and not followed.
    readable = [(key, entry) for key, entry in named if Path(entry.name).name == entry.name]
    reports = _verify_shards(shards, manifest, readable, workers, advance)
    by_split: dict[str, list[ShardFindings]] = {key: [] for key in manifest.splits}
    for (key, _), report in zip(readable, reports, strict=True):
        by_split[key].append(report)
        found.problems += report.problems
    found.problems += _repeated_keys([entry.name for _, entry in readable], [report.keys for report in reports])
    for key, split in manifest.splits.items():
        if len(by_split[key]) == len(split.shards) and all(report.whole for report in by_split[key]):
            found.problems += _split_problems(key, split, by_split[key])
        else:
            found.uncounted.append(key)
    found.shards = len(reports)
    found.chunks = sum(report.chunks for report in reports)
    found.rows = sum(report.rows for report in reports)
    found.tokens = sum(report.tokens.total() for report in reports)
    found.documents = sum(report.documents.total() for report in reports)
    return found


def _verify_shards(
    shards: Path,
    manifest: Manifest,
    named: Sequence[tuple[str, ShardEntry]],
    workers: int | None,
    advance: Callable[[int], object],
) -> list[ShardFindings]:
    def one(key: str, entry: ShardEntry) -> ShardFindings:
        split = manifest.splits[key]
        expected = Expected(
            row_tokens=manifest.seq_len + 1,
            dtype=np.dtype(manifest.token_dtype),
            vocab_size=manifest.tokenizer.vocab_size,
            end_of_document_id=manifest.tokenizer.end_of_document_id,
            padding_tokens=split.padding_tokens if entry is split.shards[-1] else 0,
        )
        return verify_shard(shards / entry.name, entry, expected, advance, stop)

    stop = threading.Event()
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "verify") as executor:
        futures = [executor.submit(one, key, entry) for key, entry in named]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C: the threads shall not read on for minutes
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _manifest_problems(manifest: Manifest) -> Iterator[str]:
    """What the manifest says that cannot be, whatever the shards hold."""
    here = MANIFEST_NAME
    tokenizer = manifest.tokenizer
    if not 0 <= tokenizer.end_of_document_id < tokenizer.vocab_size:
        yield (
            f"{here}: the end-of-document id {tokenizer.end_of_document_id} is not below the vocabulary "
            f"of {tokenizer.vocab_size}"
        )
    if tokenizer.vocab_size > np.iinfo(manifest.token_dtype).max + 1:
        yield f"{here}: a vocabulary of {tokenizer.vocab_size} does not fit into {manifest.token_dtype}"
    if "train" not in manifest.splits:
        yield f"{here}: there is no train split"
    for key, split in manifest.splits.items():
        if (split.split == "train") != (key == "train") or (split.split == "train") != (split.source is None):
            yield f"{here}: split {key} calls itself {split.split} of {split.source or 'all sources'}"
        if split.source is not None and set(split.sources) != {split.source}:
            yield f"{here}: {key} counts {', '.join(split.sources)} instead of {split.source} alone"
        for number, entry in enumerate(split.shards):
            if entry.name != f"{key}-{number:06d}.tar":
                yield f"{here}: shard {number} of {key} is called {entry.name}"
        rows = sum(entry.rows for entry in split.shards)
        if rows != split.rows:
            yield f"{here}: {key} has {split.rows} rows, its shards have {rows}"
        room = split.rows * (manifest.seq_len + 1) - split.padding_tokens
        if split.tokens != room:
            yield (
                f"{here}: {key} has {split.tokens} tokens of documents, but {split.rows} rows of "
                f"{manifest.seq_len} + 1 less {split.padding_tokens} of padding are {room}"
            )
        if not 0 <= split.padding_tokens <= manifest.seq_len:
            yield f"{here}: {key} has {split.padding_tokens} tokens of padding in a row of {manifest.seq_len} + 1"


def _tokenizer_problems(shards: Path, manifest: Manifest) -> Iterator[str]:
    path = shards / TOKENIZER_PATH
    try:
        digest = sha256_file(path)
    except OSError as error:
        yield f"{TOKENIZER_PATH}: cannot be read: {error.strerror}"
        return
    try:
        config = json.loads((shards / TOKENIZER_CONFIG_PATH).read_bytes())
        if not isinstance(config, dict):
            yield f"{TOKENIZER_CONFIG_PATH}: is no JSON object"
    except FileNotFoundError:
        pass  # the tokenizer is whole without it
    except OSError as error:
        yield f"{TOKENIZER_CONFIG_PATH}: cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        yield f"{TOKENIZER_CONFIG_PATH}: is no JSON: {error}"
    if digest != manifest.tokenizer.sha256:
        yield f"{TOKENIZER_PATH}: its sha256 is not the manifest's: it did not make these shards"
        return
    try:
        entries = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the Rust library raises bare Exception for every malformed file
        yield f"{TOKENIZER_PATH}: is no tokenizer: {error}"
        return
    vocab_size = max(entries.values(), default=-1) + 1
    if vocab_size != manifest.tokenizer.vocab_size:
        yield f"{TOKENIZER_PATH}: its vocabulary is {vocab_size}, the manifest says {manifest.tokenizer.vocab_size}"


def _rejected_problems(shards: Path, manifest: Manifest) -> Iterator[str]:
    """Each refused record stands in rejected.jsonl and is counted by its reason."""
    reasons: Counter[str] = Counter()
    try:
        with open(shards / REJECTED_NAME, encoding="utf-8") as file:
            for line in file:
                reasons[json.loads(line)["reason"]] += 1
    except FileNotFoundError:
        pass  # then nothing should have been refused
    except OSError as error:
        yield f"{REJECTED_NAME}: cannot be read: {error.strerror}"
        return
    except (ValueError, KeyError, TypeError):
        yield f"{REJECTED_NAME}: line {reasons.total() + 1} is no refused record"
        return
    for reason in sorted({*reasons, *manifest.rejected}):
        listed, told = reasons[reason], manifest.rejected.get(reason, 0)
        if listed != told:
            yield f"{REJECTED_NAME}: {listed} records refused as {reason}, the manifest says {told}"


def _strangers(shards: Path, manifest: Manifest) -> Iterator[str]:
    """Files that a reader of all tars would take for shards."""
    named = {entry.name for split in manifest.splits.values() for entry in split.shards}
    named |= {Path(name).with_suffix(".idx").name for name in named}
    for path in sorted(shards.iterdir()):
        if path.name.removesuffix(PARTIAL_SUFFIX).endswith((".tar", ".idx")) and path.name not in named:
            yield f"{path.name}: not in the manifest"


def _repeated_keys(names: Sequence[str], keys: Sequence[array[int]]) -> Iterator[str]:
    """Chunks with the same sample key, which WebDataset would join; told once for each two shards."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *(np.frombuffer(of_shard, np.uint64) for of_shard in keys)])
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    first_chunks = np.cumsum([0, *map(len, keys)])
    pairs: Counter[tuple[int, int]] = Counter()
    for one, other in zip(order[again], order[again + 1], strict=True):
        one_shard, other_shard = (int(np.searchsorted(first_chunks, n, side="right")) - 1 for n in (one, other))
        pairs[other_shard, one_shard] += 1
    for (shard, before), count in sorted(pairs.items()):
        yield f"{names[shard]}: {count} of its chunks have sample keys that {names[before]} has too"


def _split_problems(key: str, split: SplitEntry, reports: Sequence[ShardFindings]) -> Iterator[str]:
    """The split's totals by source, once all of its chunks were counted."""

    def total(counts: Callable[[ShardFindings], Counter[str]]) -> Counter[str]:
        return sum((counts(report) for report in reports), Counter())

    documents, tokens = total(lambda report: report.documents), total(lambda report: report.tokens)
    text_bytes = total(lambda report: report.text_bytes)
    unfinished, continued = total(lambda report: report.unfinished), total(lambda report: report.continued)
    for source in sorted({*split.sources, *tokens}):
        told = split.sources.get(source, SourceCount(documents=0, tokens=0, text_bytes=0))
        for what, counted, wanted in (
            ("documents", documents[source], told.documents),
            ("tokens", tokens[source], told.tokens),
            ("bytes of text", text_bytes[source], told.text_bytes),
        ):
            if counted != wanted:
                yield f"{MANIFEST_NAME}: {key} has {counted} {what} of {source!r}, the manifest says {wanted}"
        # Where a document goes on is not always the next chunk; but it goes on somewhere.
        if unfinished[source] > continued[source]:
            missing = unfinished[source] - continued[source]
            yield f"{MANIFEST_NAME}: {key} holds {missing} documents of {source!r} that begin and never end"
