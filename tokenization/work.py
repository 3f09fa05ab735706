"""What is to be done, found alike by every process that opens the recipe: inputs, tokenizer, parts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer

from pipeline.console import console
from pipeline.durable import PARTIAL_SUFFIX, repair_folder, replace_folder, sha256_json, write_text
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.recipe_tokenize import TokenFilesSource, TrainedTokenizer
from tokenization.documents import Document, SourceReader, pieces_of
from tokenization.encoding.tokenizer import (
    TRAINED_NAME,
    DocumentTokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from tokenization.finished_shards import TOKENIZER_FOLDER, settings_of
from tokenization.join import join_begun
from tokenization.part_folder import PartsFolder
from tokenization.plan import Part, make_parts, order_for_duplicates, size_of_parts
from tokenization.progress import TokenizeProgress
from tokenization.sources.open_sources import open_sources
from tokenization.workers import Job, Setting, do_jobs


@dataclass(frozen=True)
class Work:
    """All parts of a recipe, the same for every process that opens it."""

    recipe: Recipe
    setting: Setting
    parts: list[Part]
    keys: list[str]
    tokenizer: DocumentTokenizer

    @staticmethod
    def open(recipe: Recipe, shards: Path) -> Work:
        """Find the inputs, cut them, and make the tokenizer, which one process does for all."""
        section = recipe.tokenize
        wanted = section.tokenizer
        given = None if isinstance(wanted, TrainedTokenizer) else load_tokenizer(wanted, section.end_of_document)
        readers = _open_sources(recipe, given)
        parts = make_parts(readers, size_of_parts(section, readers))
        folder = PartsFolder(shards)
        with folder.lock("tokenizer", f"the tokenizer of {shards}"):
            inputs = sha256_json([settings_of(recipe), [part.key("", "") for part in parts]])
            stamp = folder.path / "tokenizer.sha256"
            if not (stamp.exists() and stamp.read_text() == inputs and (shards / TOKENIZER_FOLDER).is_dir()):
                if isinstance(wanted, TrainedTokenizer):
                    sample = _training_sample(readers, parts, wanted.sample_bytes)
                    made = train_tokenizer(sample, wanted.train_vocab_size, section.end_of_document)
                else:
                    assert given is not None
                    made = given
                partial = folder.path / TOKENIZER_FOLDER
                shutil.rmtree(partial, ignore_errors=True)
                save_tokenizer(*made, partial)
                repair_folder(shards / TOKENIZER_FOLDER)
                replace_folder(partial, shards / TOKENIZER_FOLDER)
                write_text(stamp, inputs)
        name = TRAINED_NAME if isinstance(wanted, TrainedTokenizer) else wanted
        tokenizer = DocumentTokenizer(shards / TOKENIZER_FOLDER, name, section.end_of_document)
        keys = [part.key(recipe.tokenize_hash(), tokenizer.entry.sha256) for part in parts]
        begun = join_begun(shards)
        if begun is None:
            _remove_leftovers(shards)
        elif begun != keys:
            _remove_joined(shards)
        if not tokenizer.fast:
            console.print(f"encoding with `tokenizers`, the slow way: {tokenizer.why_not_fast}", markup=False)
        return Work(recipe, Setting(recipe, shards, shards / TOKENIZER_FOLDER, name), parts, keys, tokenizer)

    @property
    def folder(self) -> PartsFolder:
        return PartsFolder(self.setting.shards)

    def scan(self, parts: Sequence[Part], workers: int) -> None:
        """Hash the documents of `parts` for the search for duplicates."""
        if join_begun(self.setting.shards) is not None:
            return
        left = [part for part in parts if not self.folder.scanned(part.number, self.keys[part.number])]
        self._do("looking for duplicates", [Job(part, self.keys[part.number], True, ()) for part in left], workers)

    def make(self, parts: Sequence[Part], workers: int) -> None:
        """Make those of `parts` that are not finished."""
        if join_begun(self.setting.shards) is not None:
            return
        left = [part for part in parts if self.folder.result(part.number, self.keys[part.number]) is None]
        if len(left) < len(parts):
            console.print(f"{len(parts) - len(left)} of {len(parts)} parts are finished already", markup=False)
        before = self._scans() if left and self.recipe.tokenize.clean.remove_duplicates else {}
        jobs = [Job(part, self.keys[part.number], False, before.get(part.number, ())) for part in left]
        self._do("tokenize", jobs, workers)

    def _do(self, what: str, jobs: list[Job], workers: int) -> None:
        if jobs:
            workers = min(workers, len(jobs))
            with TokenizeProgress(what, sum(job.part.size for job in jobs), workers) as progress:
                do_jobs(self.setting, jobs, workers, progress.worker, progress.begins)

    def _scans(self) -> dict[int, tuple[Path, ...]]:
        """By part number the scans of all parts before it, and its own last."""
        order = order_for_duplicates(self.parts)
        missing = [number for number in order if not self.folder.scanned(number, self.keys[number])]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(order)} parts have not been scanned for duplicates, part {missing[0] + 1} for "
                "one: run `adaponder tokenize --scan --part i/n` for all of them first"
            )
        paths = [self.folder.hashes(number) for number in order]
        return {number: tuple(paths[: place + 1]) for place, number in enumerate(order)}


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
                        yield text
                        left -= len(text.encode())
                if left <= 0:
                    break
            if left <= 0:
                break


def _remove_leftovers(shards: Path) -> None:
    """Remove shards that no manifest names and no join has begun to place; other files are none of ours."""
    shard = re.compile(r"(train|validation-.+)-\d{6}\.(tar|idx)")
    for path in sorted(shards.iterdir()):
        if shard.fullmatch(path.name.removesuffix(PARTIAL_SUFFIX)):
            path.unlink()


def _remove_joined(shards: Path) -> None:
    """Start anew where inputs or settings changed while the parts were being joined: their shards are scattered."""
    _remove_leftovers(shards)
    parts = PartsFolder(shards).path
    (parts / "joined.json").unlink()
    for path in sorted(parts.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
    console.print(f"inputs or settings changed: all parts of {shards} are made anew", markup=False)
