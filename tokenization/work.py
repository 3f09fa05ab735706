"""What is to be done, found alike by every process that opens the recipe: inputs, tokenizer, parts.

Several processes, on several machines, may work on the parts of one folder at once. Three kinds of locks keep them
apart: `tokenizer`, while a process finds out what is to be done and makes the tokenizer if it is the first; `run`,
shared by all that do the same work, so that none with other inputs or settings comes in between; and one a part.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from tokenizers import Tokenizer

from pipeline.console import console
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.durable import PARTIAL_SUFFIX, repair_folder, replace_folder, sha256_json, write_text
from pipeline.errors import UserError, WorldError
from pipeline.recipe import Recipe
from pipeline.recipe_tokenize import CleanSection, TokenFilesSource, TrainedTokenizer
from tokenization.documents import Document, SourceReader, pieces_of
from tokenization.encoding.tokenizer import (
    TRAINED_NAME,
    DocumentTokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from tokenization.finished_shards import TOKENIZER_FOLDER, settings_of
from tokenization.job import Job, Setting
from tokenization.join import join_begun
from tokenization.part_folder import AS_LONG_AS_IT_TAKES, JOINED, SECONDS_FOR_A_DYING_PROCESS, PartsFolder, locked
from tokenization.plan import Part, Share, keys_with_duplicates, make_parts, order_for_duplicates, size_of_parts
from tokenization.progress import TokenizeProgress
from tokenization.sources.find_files import file_identity, find_files
from tokenization.sources.json_lines import SUFFIXES
from tokenization.sources.open_sources import open_sources
from tokenization.workers import Workers

STAMP = "tokenizer.sha256"
"""Names the inputs and settings that shards/tokenizer was made for."""


class FinishedMeanwhileError(Exception):
    """Another process has written the manifest."""


@dataclass(frozen=True)
class Work:
    """All parts of a recipe, the same for every process that opens it."""

    recipe: Recipe
    setting: Setting
    parts: list[Part]
    keys: list[str]
    """Of `parts`: what each is made from."""
    scan_keys: list[str]
    """The same for the search for duplicates, which needs no other part."""
    workers: Workers

    @staticmethod
    @contextmanager
    def open(recipe: Recipe, shards: Path, workers: int = 1, share: Share | None = None) -> Iterator[Work]:
        """Find the inputs, cut them, and make the tokenizer, which one process does for all.

        workers: how many processes make parts. share: those that this process will make, where others make the rest;
        then what another process joins is not thrown away where inputs or settings differ, but refused. Raises
        `FinishedMeanwhileError` where there is nothing left to do.
        """
        section = recipe.tokenize
        wanted = section.tokenizer
        given = None if isinstance(wanted, TrainedTokenizer) else load_tokenizer(wanted, section.end_of_document)
        readers = _open_sources(recipe, given)
        parts = make_parts(readers, size_of_parts(section, readers))
        settings = sha256_json(
            [
                version("adaponder"),
                settings_of(recipe),
                None if given is None else sha256_json([given[0].to_str(), given[1]]),
                _identity_of_evaluation_files(section.clean),
            ]
        )
        inputs = sha256_json([settings, [part.key("") for part in parts]])
        folder = PartsFolder(shards)
        others = f"the work on {shards} by another process with other inputs or settings"
        with (
            folder.lock("run", others, shared=True, seconds=AS_LONG_AS_IT_TAKES) as run,
            Workers(workers) as started,
        ):
            started.start(len(parts if share is None else share.taken_from(parts)))
            with folder.lock("tokenizer", f"the tokenizer of {shards}", seconds=AS_LONG_AS_IT_TAKES):
                if (shards / MANIFEST_NAME).exists():
                    raise FinishedMeanwhileError
                stamp = folder.path / STAMP
                if not (stamp.exists() and stamp.read_text() == inputs and (shards / TOKENIZER_FOLDER).is_dir()):
                    with _alone(run, others):
                        stamp.unlink(missing_ok=True)
                        folder.slow_file.unlink(missing_ok=True)
                        if isinstance(wanted, TrainedTokenizer):
                            sample = _training_sample(readers, parts, wanted.sample_bytes)
                            made = train_tokenizer(sample, wanted.train_vocab_size, section.end_of_document)
                        else:
                            assert given is not None
                            made = given
                        _replace_tokenizer(made, folder.path / TOKENIZER_FOLDER, shards / TOKENIZER_FOLDER)
                        write_text(stamp, inputs)
                name = TRAINED_NAME if isinstance(wanted, TrainedTokenizer) else wanted
                slow = folder.slow_file.read_text() if folder.slow_file.exists() else None
                tokenizer = DocumentTokenizer(shards / TOKENIZER_FOLDER, name, section.end_of_document, slow)
                made_with = sha256_json([settings, tokenizer.entry.sha256, tokenizer.fast])
                keys = scan_keys = [part.key(made_with) for part in parts]
                duplicates = section.clean.remove_duplicates
                if duplicates:
                    keys = keys_with_duplicates(parts, keys)
                begun = join_begun(shards)
                if begun is not None and begun != keys:
                    if share is not None:
                        raise UserError(
                            f"{folder.path} is being joined, with other inputs or settings: "
                            "run `adaponder tokenize` without --part to start anew"
                        )
                    with _alone(run, others):
                        _remove_joined(shards)
            if tokenizer.why_not_fast:
                console.print(f"encoding with `tokenizers`, the slow way: {tokenizer.why_not_fast}", markup=False)
            setting = Setting(
                recipe=recipe,
                shards=shards,
                tokenizer=tokenizer,
                order=tuple(order_for_duplicates(parts)) if duplicates else (),
            )
            yield Work(recipe, setting, parts, keys, scan_keys, started)

    @property
    def folder(self) -> PartsFolder:
        return PartsFolder(self.setting.shards)

    def scan(self, parts: Sequence[Part]) -> None:
        """Hash the documents of `parts` for the search for duplicates."""
        left = [part for part in parts if not self.folder.scanned(part.number, self.scan_keys[part.number])]
        self._do("looking for duplicates", [Job(part, self.scan_keys[part.number], True) for part in left], 1)

    def make(self, parts: Sequence[Part]) -> None:
        """Make those of `parts` that are not finished."""
        left = [part for part in parts if self.folder.result(part.number, self.keys[part.number]) is None]
        if len(left) < len(parts):
            console.print(f"{len(parts) - len(left)} of {len(parts)} parts are finished already", markup=False)
        places = {number: place for place, number in enumerate(self.setting.order)}
        if left and places:
            self._check_scans()
        jobs = [Job(part, self.keys[part.number], False, places.get(part.number, 0)) for part in left]
        self._do("tokenize", jobs, None)

    def _do(self, what: str, jobs: list[Job], passes: int | None) -> None:
        if not jobs or self.folder.over:
            return
        total = sum(job.part.size * (passes or self._passes(job.part)) for job in jobs)
        with TokenizeProgress(what, total, self.workers.shared_among(len(jobs))) as progress:
            self.workers.do(self.setting, jobs, progress.worker, progress.begins)

    def _passes(self, part: Part) -> int:
        """How often a part is read."""
        weight = self.recipe.tokenize.sources[part.source].weight
        return 1 if part.slices[0].split == "validation" else -int(-weight // 1)

    def _check_scans(self) -> None:
        order = self.setting.order
        missing = [number for number in order if not self.folder.scanned(number, self.scan_keys[number])]
        if missing and not self.folder.over:
            raise UserError(
                f"{len(missing)} of {len(order)} parts have not been scanned for duplicates, part {missing[0] + 1} for "
                "one: run `adaponder tokenize --scan --part i/n` for all of them first"
            )


@contextmanager
def _alone(run: IO[str], others: str) -> Iterator[None]:
    """Hold the lock that is shared among those who do the same work against all others."""
    if not locked(run, shared=False, seconds=SECONDS_FOR_A_DYING_PROCESS, what=others):
        raise WorldError(f"{others} is not over: wait for it, then the same command continues")
    yield
    locked(run, shared=True, seconds=AS_LONG_AS_IT_TAKES, what=others)


def _replace_tokenizer(made: tuple[Tokenizer, dict[str, str]], partial: Path, folder: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    save_tokenizer(*made, partial)
    repair_folder(folder)
    replace_folder(partial, folder)


def _identity_of_evaluation_files(clean: CleanSection) -> list[str]:
    if not clean.contamination_files:
        return []
    try:
        files = find_files(clean.contamination_files, SUFFIXES)
    except UserError as error:
        raise UserError(f"tokenize.clean.contamination_files: {error}") from error
    return [f"{path} {file_identity(path)}" for path in files]


def _open_sources(recipe: Recipe, given: tuple[Tokenizer, dict[str, str]] | None) -> list[SourceReader]:
    """The sources, before anything is written; those that are tokens already are opened with the tokenizer."""
    section = recipe.tokenize
    if given is None or not any(isinstance(source, TokenFilesSource) for source in section.sources):
        return open_sources(section, recipe.seed, None)
    with TemporaryDirectory() as folder:
        save_tokenizer(*given, Path(folder))
        return open_sources(section, recipe.seed, DocumentTokenizer(Path(folder), "given", section.end_of_document))


def _training_sample(readers: Sequence[SourceReader], parts: Sequence[Part], sample_bytes: int) -> Iterator[str]:
    """Texts to learn a tokenizer from: of each source the first training documents, an equal share of the bytes."""
    for number, reader in enumerate(readers):
        left = sample_bytes // len(readers)
        for piece in (piece for part in parts if part.source == number for piece in part.slices):
            for item in reader.read(piece, lambda _: None):
                if isinstance(item, Document) and item.split == "train":
                    for text in pieces_of(item.text):
                        yield text[: max(0, left)]
                        left -= len(text.encode())
                        if left <= 0:
                            break
                if left <= 0:
                    break
            if left <= 0:
                break


def remove_leftovers(shards: Path) -> None:
    """Remove shards that no manifest names and no join has begun to place; other files are none of ours.

    For who holds the lock on the join.
    """
    shard = re.compile(r"(train|validation-.+)-\d{6}\.(tar|idx)")
    for path in sorted(shards.iterdir()):
        if shard.fullmatch(path.name.removesuffix(PARTIAL_SUFFIX)):
            path.unlink()


def _remove_joined(shards: Path) -> None:
    """Start anew where inputs or settings changed while the parts were being joined: their shards are scattered.

    The plan of the join goes last: killed before, this is done again.
    """
    console.print(f"inputs or settings changed: all parts of {shards} are made anew", markup=False)
    parts = PartsFolder(shards)
    for path in sorted(parts.path.iterdir()):
        if path.is_dir():
            parts.remove(path)
    remove_leftovers(shards)
    (parts.path / JOINED).unlink()
