"""The tokenize stage: documents become shards, and a manifest that is only written when all of them are whole."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console import console
from pipeline.data.manifest import MANIFEST_NAME, InputEntry, Manifest, SplitEntry, read_manifest, write_manifest
from pipeline.durable import PARTIAL_SUFFIX, sha256_file, whole_file
from pipeline.errors import UserError, WorldError
from pipeline.recipe import DataSection, JsonLinesSource, Recipe, TrainedTokenizer
from pipeline.run_folder import RunFolder
from tokenization.documents import Document, Rejection, SourceReader
from tokenization.progress import TokenizeProgress
from tokenization.sources import open_sources
from tokenization.splits import TRAIN_KEY, SplitSet
from tokenization.tokenizer import TRAINED_NAME, DocumentTokenizer, load_tokenizer, save_tokenizer, train_tokenizer

TOKENIZER_FOLDER = "tokenizer"
REJECTED_NAME = "rejected.jsonl"
# What is encoded at once: enough to keep all cores busy, little enough to stay small in memory.
BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 1024
LARGEST_UINT16_VOCABULARY = 1 << 16


def tokenize(recipe: Recipe, folder: RunFolder, command: str) -> Manifest:
    """Make the run's shards, or find that they are made; returns their manifest.

    A folder without a manifest is unfinished: what lies in it is removed and made anew. A recipe whose `data.shards`
    points elsewhere uses shards made before: nothing is written, they only have to fit the recipe.

    Raises `UserError` for inputs or settings that the user can change (before anything is written, except where only
    reading tells: no training documents, an empty validation set), `WorldError` naming the file for a corrupt or
    truncated input, a full disk, or finished shards that have been damaged since.
    """
    shards = folder.shards
    if shards != folder.path / DataSection().shards:
        return _use_shards_made_before(recipe, shards)
    if (shards / MANIFEST_NAME).exists():
        return _use_finished_shards(recipe, shards)
    section = recipe.tokenize
    readers = open_sources(section, recipe.seed)
    wanted = section.tokenizer
    given = None if isinstance(wanted, TrainedTokenizer) else load_tokenizer(wanted, section.end_of_document)
    try:
        shards.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(shards)
        if isinstance(wanted, TrainedTokenizer):
            sample = _training_sample(readers, wanted.sample_bytes)
            made = train_tokenizer(sample, wanted.train_vocab_size, section.end_of_document)
            name = TRAINED_NAME
        else:
            assert given is not None
            made, name = given, wanted
        save_tokenizer(*made, shards / TOKENIZER_FOLDER)
        tokenizer = DocumentTokenizer(shards / TOKENIZER_FOLDER, name, section.end_of_document)
        manifest = _write_shards(recipe, shards, readers, tokenizer, command)
        write_manifest(shards, manifest)
    except OSError as error:
        raise WorldError(f"{error.filename or shards} cannot be written: {error.strerror or error}") from error
    _print_summary(manifest, shards)
    return manifest


def _write_shards(
    recipe: Recipe, shards: Path, readers: Sequence[SourceReader], tokenizer: DocumentTokenizer, command: str
) -> Manifest:
    section = recipe.tokenize
    dtype = np.dtype(np.uint16 if tokenizer.entry.vocab_size <= LARGEST_UINT16_VOCABULARY else np.uint32)
    splits = SplitSet(shards, section, dtype, tokenizer.entry.end_of_document_id)
    inputs: list[InputEntry] = []
    rejected: Counter[str] = Counter()
    # How many documents each source gave to each split.
    accepted: list[Counter[str]] = [Counter() for _ in readers]
    with (
        whole_file(shards / REJECTED_NAME, "w") as rejected_file,
        splits,
        TokenizeProgress(sum(reader.total_bytes for reader in readers)) as progress,
    ):
        for number, reader in enumerate(readers):
            for item in _encoded(reader, tokenizer, progress):
                if isinstance(item, InputEntry):
                    inputs.append(item)
                elif isinstance(item, Rejection):
                    rejected[item.reason] += 1
                    rejected_file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
                else:
                    document, ids = item
                    accepted[number][document.split] += 1
                    splits.add(document, ids)
    entries = splits.entries()
    _check_nothing_is_empty(recipe, shards, accepted, rejected, entries)
    return Manifest(
        tokenizer=tokenizer.entry,
        seq_len=section.seq_len,
        token_dtype="uint16" if dtype == np.uint16 else "uint32",
        splits=entries,
        rejected=dict(sorted(rejected.items())),
        inputs=inputs,
        settings_sha256=recipe.tokenize_hash(),
        settings=_settings(recipe),
        command=command,
        version=version("adaponder"),
    )


def _encoded(
    reader: SourceReader, tokenizer: DocumentTokenizer, progress: TokenizeProgress
) -> Iterator[tuple[Document, list[int]] | Rejection | InputEntry]:
    """The reader's items, documents with their token ids, and in their order; those without a token are refused."""
    batch: list[Document] = []
    batch_bytes = 0

    def encode() -> Iterator[tuple[Document, list[int]] | Rejection]:
        encoded = tokenizer.encode_batch([document.text for document in batch])
        progress.count(sum(document.text_bytes for document in batch), sum(len(ids) + 1 for ids in encoded))
        for document, ids in zip(batch, encoded, strict=True):
            yield (document, ids) if ids else Rejection(document.file, document.line, "empty_document")

    for item in reader.read(progress.advance):
        if not isinstance(item, Document):
            yield item
            continue
        batch.append(item)
        batch_bytes += item.text_bytes
        if batch_bytes >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield from encode()
            batch, batch_bytes = [], 0
    yield from encode()


def _training_sample(readers: Sequence[SourceReader], sample_bytes: int) -> Iterator[str]:
    """Texts to learn a tokenizer from: of each source the first training documents, an equal share of the bytes."""
    for reader in readers:
        left = sample_bytes // len(readers)
        for item in reader.read(lambda _: None):
            if isinstance(item, Document) and item.split == "train":
                yield item.text
                left -= item.text_bytes
            if left <= 0:
                break


def _check_nothing_is_empty(
    recipe: Recipe,
    shards: Path,
    accepted: Sequence[Counter[str]],
    rejected: Counter[str],
    entries: dict[str, SplitEntry],
) -> None:
    refused = f" ({rejected.total()} records refused, see {shards / REJECTED_NAME})" if rejected else ""
    problems = []
    if TRAIN_KEY not in entries:
        problems.append(f"no document is left for training: give more text or a smaller validation_share{refused}")
    for number, (source, counts) in enumerate(zip(recipe.tokenize.sources, accepted, strict=True)):
        if counts["validation"]:
            continue
        where = f"tokenize.sources.{number}"
        if isinstance(source, JsonLinesSource) and source.validation:
            problems.append(f"{where}.validation: its files hold no document{refused}")
        else:
            problems.append(
                f"{where}.validation_share: none of the {counts['train']} documents of {source.name} fell into a share "
                f"of {source.validation_share:g}: raise it{refused}"
            )
    if problems:
        raise UserError("; ".join(problems))
    measured = {split.source for split in entries.values()}
    for name in entries[TRAIN_KEY].sources:
        if name not in measured:
            console.print(f"note: source {name} has no validation documents and will not be measured", markup=False)


def _use_shards_made_before(recipe: Recipe, shards: Path) -> Manifest:
    manifest = read_manifest(shards)
    if manifest.seq_len != recipe.tokenize.seq_len:
        raise UserError(
            f"{shards} has rows of seq_len {manifest.seq_len}, the recipe's tokenize.seq_len is "
            f"{recipe.tokenize.seq_len}: make them equal or point data.shards elsewhere"
        )
    _check_nothing_is_damaged(manifest, shards)
    console.print(f"nothing to do: data.shards points at {shards}, made before", markup=False)
    return manifest


def _use_finished_shards(recipe: Recipe, shards: Path) -> Manifest:
    manifest = read_manifest(shards)
    if manifest.settings_sha256 != recipe.tokenize_hash():
        differences = _differences(manifest.settings, _settings(recipe))
        raise UserError(
            f"{shards} was made with other settings ({'; '.join(differences)}): "
            "give the run another name, or remove that folder to tokenize anew"
        )
    _check_nothing_is_damaged(manifest, shards)
    console.print(f"nothing to do: {shards} is complete", markup=False)
    return manifest


def _check_nothing_is_damaged(manifest: Manifest, shards: Path) -> None:
    """That all shards are there with their sizes, and the tokenizer that made them."""
    tokenizer = shards / TOKENIZER_FOLDER / "tokenizer.json"
    if not tokenizer.is_file():
        raise WorldError(f"{tokenizer} is missing: bring it back, or remove {shards} and tokenize anew")
    if sha256_file(tokenizer) != manifest.tokenizer.sha256:
        raise WorldError(
            f"{tokenizer} is not the tokenizer that made these shards, its manifest has another sha256: "
            f"bring it back, or remove {shards} and tokenize anew"
        )
    for split in manifest.splits.values():
        for shard in split.shards:
            path = shards / shard.name
            for needed in (path, path.with_suffix(".idx")):
                if not needed.is_file():
                    raise WorldError(f"{needed} is missing: bring it back, or remove {shards} and tokenize anew")
            if path.stat().st_size != shard.bytes:
                raise WorldError(
                    f"{path} has {path.stat().st_size} bytes, its manifest says {shard.bytes}: "
                    f"bring it back, or remove {shards} and tokenize anew"
                )


def _remove_leftovers(shards: Path) -> None:
    """Remove what an unfinished run of this stage left; other files are none of ours."""
    shard = re.compile(r"(train|validation-.+)-\d{6}\.(tar|idx)")
    ours = {REJECTED_NAME, MANIFEST_NAME, TOKENIZER_FOLDER}
    removed = 0
    for path in sorted(shards.iterdir()):
        name = path.name.removesuffix(PARTIAL_SUFFIX)
        if name in ours or shard.fullmatch(name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed += 1
    if removed:
        console.print(f"removed {removed} leftovers of an unfinished run from {shards}", markup=False)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What `Recipe.tokenize_hash` hashes."""
    return {"seed": recipe.seed, "tokenize": recipe.tokenize.model_dump(mode="json")}


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Where two nested settings differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        below = [(f"{place}.{key}".lstrip("."), before.get(key), now.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        below = [(f"{place}.{number}", *pair) for number, pair in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [f"{place} was {before!r}, is {now!r}"]
    return [difference for key, old, new in below for difference in _differences(old, new, key)]


def _print_summary(manifest: Manifest, shards: Path) -> None:
    for key, split in manifest.splits.items():
        console.print(
            f"{key}: {split.documents:,} documents, {split.tokens:,} tokens, {split.rows:,} rows of "
            f"{manifest.seq_len} + 1, {len(split.shards)} shards",
            markup=False,
        )
    if manifest.rejected:
        told = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items())
        console.print(f"refused: {told}; see {shards / REJECTED_NAME}", markup=False)
    console.print(f"shards: {shards}", markup=False)
