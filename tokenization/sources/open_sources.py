"""The sources of a recipe, found and checked before any of them is read."""

from __future__ import annotations

import os
from itertools import combinations

from pipeline.errors import UserError
from pipeline.recipe_tokenize import DatasetSource, JsonLinesSource, Source, TextFolderSource, TokenizeSection
from tokenization.documents import SourceReader, printable
from tokenization.encoding.tokenizer import DocumentTokenizer
from tokenization.sources.json_lines import JsonLinesReader
from tokenization.sources.text_folder import TextFolderReader


def open_sources(section: TokenizeSection, seed: int, tokenizer: DocumentTokenizer | None) -> list[SourceReader]:
    """Find and check every input of the recipe; `UserError` lists all that is wrong with them.

    tokenizer: None where it is still to be trained.
    """
    readers: list[SourceReader] = []
    problems: list[str] = []
    for number, source in enumerate(section.sources):
        try:
            readers.append(_open_source(source, seed, tokenizer))
        except UserError as error:
            problems.append(f"tokenize.sources.{number}: {error}")
    problems += _train_and_validation_overlap(readers)
    problems += _read_twice(readers)
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


def _train_and_validation_overlap(readers: list[SourceReader]) -> list[str]:
    trained_on = {os.path.realpath(path) for reader in readers for path in reader.train_files}
    return [
        f"{path} is given for training and for validation: a model must not be measured on what it was trained on"
        for reader in readers
        for path in reader.validation_files
        if os.path.realpath(path) in trained_on
    ]


def _read_twice(readers: list[SourceReader]) -> list[str]:
    """Training files that two sources share: what one cuts off for validation, the other would train on."""
    problems = []
    files = [{os.path.realpath(path): path for path in reader.train_files} for reader in readers]
    for one, other in combinations(range(len(readers)), 2):
        shared = sorted(files[one].keys() & files[other].keys())
        if shared:
            more = f" and {len(shared) - 1} more files" if len(shared) > 1 else ""
            problems.append(
                f"{printable(str(files[one][shared[0]]))}{more}: read by two sources, {readers[one].name} and "
                f"{readers[other].name}: give each file to one of them"
            )
    return problems
