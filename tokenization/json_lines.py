"""Documents from JSON lines (.jsonl, .jsonl.gz, .jsonl.zst), in the Pile's layout or any that field names describe."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.data.manifest import InputEntry
from pipeline.errors import UserError
from pipeline.recipe import JsonLinesSource
from tokenization.compressed import check_readable, read_blocks, split_lines
from tokenization.documents import Document, Item, Reason, Rejection, Split, falls_into_validation, printable

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLinesReader:
    """Reads the training files in sorted order, then the given validation files.

    A record's source is what `source_field` says, or the recipe's `name` where it says nothing. Blank lines hold no
    record and are passed over. Every input file gets an `InputEntry` of its own.
    """

    def __init__(self, source: JsonLinesSource, seed: int) -> None:
        """Raises `UserError` where a file or pattern finds nothing or a name has an unknown suffix."""
        self._source = source
        self._seed = seed
        self.name = source.name
        self.train_files = find_files(source.train)
        self.validation_files = find_files(source.validation)
        self.total_bytes = sum(path.stat().st_size for path in self.train_files + self.validation_files)

    def read(self, advance: Callable[[int], object]) -> Iterator[Item]:
        for number, path in enumerate(self.train_files):
            yield from self._read_file(path, number, "train", advance)
        for number, path in enumerate(self.validation_files):
            yield from self._read_file(path, number, "validation", advance)

    def _read_file(
        self, path: Path, file_number: int, split: Split, advance: Callable[[int], object]
    ) -> Iterator[Document | Rejection | InputEntry]:
        digest = hashlib.sha256()
        raw_bytes = 0

        def on_raw_block(block: bytes) -> None:
            nonlocal raw_bytes
            digest.update(block)
            raw_bytes += len(block)
            advance(len(block))

        for line_number, line in enumerate(split_lines(read_blocks(path, on_raw_block)), start=1):
            if line_number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line.strip():
                yield self._parse(line, path, file_number, line_number, split)
        yield InputEntry(path=printable(str(path)), bytes=raw_bytes, sha256=digest.hexdigest())

    def _parse(self, line: bytes, path: Path, file_number: int, line_number: int, split: Split) -> Document | Rejection:
        def reject(reason: Reason, detail: str) -> Rejection:
            return Rejection(printable(str(path)), line_number, reason, detail)

        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            return reject("not_utf8", str(error))
        except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError, and integers beyond Python's limit
            return reject("malformed_json", str(error))
        text = _descend(record, self._source.text_field)
        if text is None:
            return reject("missing_text", f"no field {self._source.text_field}")
        if not isinstance(text, str):
            return reject("text_not_a_string", f"{self._source.text_field} is of type {type(text).__name__}")
        named = _descend(record, self._source.source_field)
        name = named if isinstance(named, str) and named.strip() else self._source.name
        try:
            text_bytes = len(text.encode("utf-8"))
            name.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which is no character
            return reject("not_utf8", str(error))
        number = f"{file_number}:{line_number}"
        if split == "train" and falls_into_validation(self._seed, name, number, self._source.validation_share):
            split = "validation"
        return Document(text, text_bytes, name, split, printable(str(path)), line_number)


def find_files(patterns: list[str]) -> list[Path]:
    """The files that names and glob patterns stand for, absolute, in sorted order, each once.

    Raises `UserError` with everything that is not there or has a name of unknown kind, `WorldError` for a file that
    cannot be read or is not what its suffix says.
    """
    found: set[Path] = set()
    problems: list[str] = []
    for pattern in patterns:
        literal = Path(pattern).expanduser()
        if literal.is_file():
            matches = [literal]
        else:
            matches = [Path(name) for name in glob.glob(str(literal), recursive=True) if Path(name).is_file()]
        if not matches:
            kind = "no file matches this pattern" if glob.has_magic(pattern) else "no such file"
            problems.append(f"{pattern}: {kind}")
        for path in matches:
            if not path.name.endswith(SUFFIXES):
                problems.append(f"{path}: a name that ends in {', '.join(SUFFIXES)} is expected")
            else:
                found.add(path.absolute())
    if problems:
        raise UserError("; ".join(problems))
    files = sorted(found)
    for path in files:
        check_readable(path)
    return files


def _descend(record: Any, dotted: str) -> Any:
    """The value at `dotted` (dots descend into objects); None where there is none."""
    for key in dotted.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(key)
    return record
