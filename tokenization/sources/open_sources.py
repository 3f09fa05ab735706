"""The sources of a recipe, found and checked before any of them is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from itertools import combinations
from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipe_tokenize import DatasetSource, JsonLinesSource, Source, TextFolderSource, TokenizeSection
from tokenization.documents import SourceReader, printable
from tokenization.encoding.tokenizer import DocumentTokenizer
from tokenization.sources.json_lines import JsonLinesReader
from tokenization.sources.text_folder import TextFolderReader


def open_sources(
    section: TokenizeSection, seed: int, tokenizer: DocumentTokenizer | None, check: bool = True
) -> list[SourceReader]:
    """Find and check every input of the recipe; `UserError` lists all that is wrong with them.

    tokenizer: None where it is still to be trained. check: whether to look for files that are given twice, which
    takes a second for some hundred thousand files; False where it was done for the same recipe before.
    """
    readers: list[SourceReader] = []
    problems: list[str] = []
    for number, source in enumerate(section.sources):
        try:
            readers.append(_open_source(source, seed, tokenizer))
        except UserError as error:
            problems.append(f"tokenize.sources.{number}: {error}")
    if check:
        problems += _given_twice(readers)
    if problems:
        raise UserError("; ".join(problems))
    return readers


def _open_source(source: Source, seed: int, tokenizer: DocumentTokenizer | None) -> SourceReader:
    if isinstance(source, JsonLinesSource):
        return JsonLinesReader(source, seed)
    if isinstance(source, TextFolderSource):
        return TextFolderReader(source, seed)
    if isinstance(source, DatasetSource):
        from tokenization.sources.dataset_source import open_dataset  # what it imports takes seconds

        return open_dataset(source, seed)
    from tokenization.sources.token_files import TokenFilesReader

    if tokenizer is None:
        raise UserError("kind: tokens: a tokenizer that is still to be trained has made no tokens: name one")
    entry = tokenizer.entry
    return TokenFilesReader(source, seed, entry.end_of_document_id, entry.vocab_size, tokenizer.text_bytes_of)


def _given_twice(readers: list[SourceReader]) -> list[str]:
    """Files that are given for training and for validation, or to two sources."""
    if len(readers) < 2 and not any(reader.validation_files for reader in readers):
        return []
    trained_on = [_real_paths(reader.train_files) for reader in readers]
    problems = []
    for reader in readers:
        for real, path in _real_paths(reader.validation_files).items():
            if any(real in files for files in trained_on):
                problems.append(
                    f"{path} is given for training and for validation: a model must not be measured on what it was "
                    "trained on"
                )
    # What one source cuts off for validation, the other would train on.
    for one, other in combinations(range(len(readers)), 2):
        shared = sorted(trained_on[one].keys() & trained_on[other].keys())
        if shared:
            more = f" and {len(shared) - 1} more files" if len(shared) > 1 else ""
            problems.append(
                f"{printable(str(trained_on[one][shared[0]]))}{more}: read by two sources, {readers[one].name} and "
                f"{readers[other].name}: give each file to one of them"
            )
    return problems


def _real_paths(files: Iterable[Path]) -> dict[str, Path]:
    """The files by their places on the disk. `os.path.realpath` of each would ask about every folder on its way."""
    real_folder = cache(os.path.realpath)
    found: dict[str, Path] = {}
    for path in files:
        folder, name = os.path.split(path)
        real = os.path.join(real_folder(folder), name)
        found[os.path.realpath(real) if os.path.islink(real) else real] = path
    return found
