"""The tokenize stage: documents become shards, and a manifest that is only written when all of them are whole.

The work is cut into parts (`tokenization.plan`), which processes make one by one (`workers`, `part`), on one machine or
on many, and which are joined at the end (`join`). What is finished stays finished: killed anywhere and started again,
with as many workers as you like, the stage goes on, and the shards are the same to the last byte.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from pipeline.console import console
from pipeline.data.manifest import MANIFEST_NAME, Manifest, SplitEntry, WeightEntry, read_manifest, write_manifest
from pipeline.durable import write_text
from pipeline.errors import UserError, WorldError
from pipeline.recipe import DataSection, Recipe
from pipeline.recipe_tokenize import TextFolderSource
from pipeline.run_folder import RunFolder
from tokenization.encoding.tokenizer import token_dtype
from tokenization.finished_shards import settings_of, use_finished_shards, use_shards_made_before
from tokenization.join import join_begun, join_inputs, join_parts, join_rejected
from tokenization.part import EncodingDiffers
from tokenization.part_folder import REJECTED_NAME, PartResult, PartsFolder
from tokenization.plan import Share
from tokenization.splits import TRAIN_KEY
from tokenization.work import FinishedMeanwhileError, Work, remove_leftovers


def tokenize(recipe: Recipe, folder: RunFolder, command: str, workers: int = 1) -> Manifest:
    """Make the run's shards, or find that they are made; returns their manifest.

    A recipe whose `data.shards` points elsewhere uses shards made before: nothing is written, they only have to fit the
    recipe.

    Raises `UserError` for inputs or settings that the user can change (before anything is written, except where only
    reading tells: no training documents, an empty validation set), `WorldError` naming the file for a corrupt or
    truncated input, a full disk, a dead worker, or finished shards that have been damaged since.
    """

    def all_of_it(work: Work) -> None:
        if recipe.tokenize.clean.remove_duplicates:
            work.scan(work.parts)
        work.make(work.parts)
        _join(work, command)

    return _worked(recipe, folder, all_of_it, workers) or read_manifest(folder.shards)


def tokenize_share(recipe: Recipe, folder: RunFolder, share: Share, workers: int, scan: bool) -> None:
    """Make only the parts of `share`, for many processes on many machines; `finish` joins them.

    scan: look for duplicates, which has to be done with all parts before the first of them is made.
    """
    if scan and not recipe.tokenize.clean.remove_duplicates:
        raise UserError("--scan: tokenize.clean.remove_duplicates is off, there is nothing to scan for")

    def own_parts(work: Work) -> None:
        own = share.taken_from(work.parts)
        if scan:
            work.scan(own)
        else:
            work.make(own)
        console.print(f"{share.number}/{share.of}: {len(own)} of {len(work.parts)} parts are done", markup=False)

    _worked(recipe, folder, own_parts, workers, share)


def finish(recipe: Recipe, folder: RunFolder, command: str) -> Manifest:
    """Join the parts that `tokenize_share` made; `UserError` naming those that are missing."""
    return _worked(recipe, folder, lambda work: _join(work, command)) or read_manifest(folder.shards)


def _worked(
    recipe: Recipe, folder: RunFolder, act: Callable[[Work], None], workers: int = 1, share: Share | None = None
) -> Manifest | None:
    """Let `act` work on the run's shards, unless they are finished: then their manifest."""
    while (found := _finished(recipe, folder)) is None:
        try:
            with Work.open(recipe, folder.shards, workers, share) as work:
                act(work)
            return None
        except FinishedMeanwhileError:
            continue
        except EncodingDiffers as error:
            # Told once, for all processes: none may go on with ids that another one does not give.
            write_text(PartsFolder(folder.shards).slow_file, str(error))
            console.print(f"fast encoding gives other ids, starting again without it: {error}", markup=False)
        except OSError as error:
            raise WorldError(
                f"{error.filename or folder.shards}: {error.strerror or error}; the same command continues"
            ) from error
    return found


def _finished(recipe: Recipe, folder: RunFolder) -> Manifest | None:
    shards = folder.shards
    if shards != folder.path / DataSection().shards:
        return use_shards_made_before(recipe, folder)
    if not (shards / MANIFEST_NAME).exists():
        return None
    manifest = use_finished_shards(recipe, shards)
    shutil.rmtree(PartsFolder(shards).path, ignore_errors=True)  # a kill may have come before
    return manifest


def _join(work: Work, command: str) -> None:
    """All parts become the data set."""
    shards, section, entry = work.setting.shards, work.recipe.tokenize, work.setting.tokenizer.entry
    with work.folder.lock("join", f"the manifest of {shards}"):
        if (shards / MANIFEST_NAME).exists():
            return
        if join_begun(shards) is None:
            remove_leftovers(shards)
        found = [work.folder.result(part.number, key) for part, key in zip(work.parts, work.keys, strict=True)]
        results = [result for result in found if result is not None]
        if len(results) < len(found):
            missing = [str(number) for number, result in enumerate(found, start=1) if result is None]
            shown = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
            raise UserError(
                f"{len(missing)} of {len(found)} parts are not finished: {shown}; make them with "
                "`adaponder tokenize --part i/n`, or with `adaponder tokenize`, which makes all that is missing"
            )
        documents = _documents(work, results)
        trained = any(TRAIN_KEY in result.splits for result in results)
        refused = sum((Counter(result.rejected) for result in results), Counter())
        _check_nothing_is_empty(work.recipe, shards, documents, trained, refused)
        splits = join_parts(shards, section, results, entry.vocab_size, entry.end_of_document_id)
        manifest = Manifest(
            tokenizer=entry,
            seq_len=section.seq_len,
            token_dtype="uint16" if token_dtype(entry.vocab_size).itemsize == 2 else "uint32",
            splits=splits,
            rejected=join_rejected(shards, work.parts, results),
            weights=_weights(work, results),
            inputs=join_inputs(results),
            settings_sha256=work.recipe.tokenize_hash(),
            settings=settings_of(work.recipe),
            command=command,
            version=version("adaponder"),
        )
        write_manifest(shards, manifest)
    shutil.rmtree(work.folder.path, ignore_errors=True)  # what is left goes with the next call
    _tell_unmeasured(manifest.splits)
    _print_summary(manifest, shards)


def _weights(work: Work, results: Sequence[PartResult]) -> list[WeightEntry]:
    found = []
    for number, source in enumerate(work.recipe.tokenize.sources):
        own = [result for part, result in zip(work.parts, results, strict=True) if part.source == number]
        written = [split.splits[TRAIN_KEY].entry for split in own if TRAIN_KEY in split.splits]
        if source.weight != 1:
            entry = WeightEntry(
                name=source.name,
                weight=source.weight,
                weight_by=source.weight_by,
                documents_read=sum(result.documents.get("train", 0) for result in own),
                tokens_read=sum(result.tokens.get("train", 0) for result in own),
                documents_written=sum(split.documents for split in written),
                tokens_written=sum(split.tokens for split in written),
            )
            found.append(entry)
    return found


def _documents(work: Work, results: Sequence[PartResult]) -> list[Counter[str]]:
    """How many documents each source of the recipe gave to each split."""
    documents: list[Counter[str]] = [Counter() for _ in work.recipe.tokenize.sources]
    for part, result in zip(work.parts, results, strict=True):
        documents[part.source].update(result.documents)
    return documents


def _check_nothing_is_empty(
    recipe: Recipe, shards: Path, documents: Sequence[Counter[str]], trained: bool, rejected: Counter[str]
) -> None:
    refused = (
        f" ({rejected.total()} records refused, see {PartsFolder(shards).path}/*/{REJECTED_NAME})" if rejected else ""
    )
    problems = []
    if not trained:
        problems.append(
            f"no document is left for training: give more text, a larger weight or a smaller validation_share{refused}"
        )
    for number, (source, counts) in enumerate(zip(recipe.tokenize.sources, documents, strict=True)):
        if counts["validation"]:
            continue
        where = f"tokenize.sources.{number}"
        if isinstance(source, TextFolderSource) or source.validation_share:
            problems.append(
                f"{where}.validation_share: none of the {counts['train']} documents of {source.name} fell into a share "
                f"of {source.validation_share:g}: raise it{refused}"
            )
        else:
            problems.append(f"{where}.validation: its files hold no document{refused}")
    if problems:
        raise UserError("; ".join(problems))


def _tell_unmeasured(splits: dict[str, SplitEntry]) -> None:
    measured = {split.source for split in splits.values()}
    for name in splits[TRAIN_KEY].sources:
        if name not in measured:
            console.print(f"note: source {name} has no validation documents and will not be measured", markup=False)


def _print_summary(manifest: Manifest, shards: Path) -> None:
    for key, split in manifest.splits.items():
        console.print(
            f"{key}: {split.documents:,} documents, {split.tokens:,} tokens, {split.rows:,} rows of "
            f"{manifest.seq_len} + 1, {len(split.shards)} shards",
            markup=False,
        )
    for weight in manifest.weights:
        console.print(
            f"{weight.name}: weight {weight.weight:g} by {weight.weight_by}: {weight.documents_written:,} documents, "
            f"{weight.tokens_written:,} tokens from {weight.documents_read:,} and {weight.tokens_read:,}",
            markup=False,
        )
    if manifest.rejected:
        told = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items())
        console.print(f"refused: {told}; see {shards / REJECTED_NAME}", markup=False)
    console.print(f"shards: {shards}", markup=False)
