"""One row as a reader sees it: decoded, with the boundaries of its documents, end-of-document marks and padding."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.columns import Columns
from rich.text import Text
from tokenizers import Tokenizer

from pipeline.console import console
from pipeline.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from pipeline.durable import sha256_file
from pipeline.errors import UserError, WorldError
from tokenization.inspection.stored_chunks import TOKENIZER_PATH, StoredShard

END_STYLE, TITLE_STYLE, DIM_STYLE = "bold magenta", "bold cyan", "dim"


@dataclass(frozen=True)
class RowPiece:
    """The part of one document that stands in a row."""

    source: str
    start: int
    """First token in the row."""
    end: int
    """Behind the last; the end-of-document mark included where `ends`."""
    begins: bool
    """Whether the document begins here; else it goes on from before the row."""
    ends: bool
    """Whether it ends here; else it goes on behind the row."""
    text_bytes: int
    """Bytes of the whole document's text; 0 where it began in another chunk."""


@dataclass(frozen=True)
class Row:
    """A row with what stands in it."""

    tokens: np.ndarray
    """[seq_len + 1], as stored."""
    pieces: list[RowPiece]
    padding_tokens: int
    """Tokens at its end that belong to no document."""
    shard: str
    chunk: int
    """Number of its chunk in the shard."""
    row_in_chunk: int


def peek(shards: Path, number: int, split_key: str, each_token: bool) -> None:
    """Print row `number` of a split; with `each_token` every token by itself.

    Raises `UserError` for a row or split that there is not, `WorldError` naming the file for a damaged shard.
    """
    if not shards.is_dir():
        raise UserError(f"{shards}: no such folder: give the folder that holds {MANIFEST_NAME}")
    manifest = read_manifest(shards)
    row = read_row(shards, manifest, split_key, number)
    tokenizer = _tokenizer(shards, manifest)
    console.print(
        f"row {number:,} of {manifest.splits[split_key].rows:,} in {split_key}: "
        f"{row.shard}, chunk {row.chunk}, row {row.row_in_chunk} of the chunk",
        style="bold",
        markup=False,
    )
    end_of_document = manifest.tokenizer.end_of_document_id
    for piece in row.pieces:
        console.print()
        console.print(_title(piece, len(row.tokens)), style=TITLE_STYLE, markup=False)
        ids = row.tokens[piece.start : piece.end].tolist()
        if each_token:
            _print_tokens(tokenizer, ids, piece.start, end_of_document)
        else:
            _print_text(tokenizer, ids, piece.ends)
    if row.padding_tokens:
        mark = _token(tokenizer, end_of_document)
        told = f"── padding: {row.padding_tokens:,} times {mark}, of no document and in no loss"
        console.print()
        console.print(told, style=END_STYLE, markup=False)


def read_row(shards: Path, manifest: Manifest, split_key: str, number: int) -> Row:
    """Row `number` of a split, from 0, with its documents; errors as `peek` raises them."""
    split = manifest.splits.get(split_key)
    if split is None:
        raise UserError(f"--split {split_key}: {shards} has {', '.join(manifest.splits)}")
    if not 0 <= number < split.rows:
        raise UserError(f"--row {number}: {split_key} has {split.rows:,} rows, from 0 to {split.rows - 1}")
    left = number
    for entry in split.shards:
        if left >= entry.rows:
            left -= entry.rows
            continue
        with StoredShard(shards, entry, manifest.seq_len + 1) as shard:
            for chunk in range(shard.chunks):
                rows = shard.header(chunk).shape[0]
                if left < rows:
                    return _row(shard, entry.name, chunk, left, manifest)
                left -= rows
        raise WorldError(f"{shards / entry.name} holds fewer than the {entry.rows} rows of the manifest: restore it")
    raise WorldError(f"{shards / MANIFEST_NAME} counts {split.rows} rows in {split_key}, its shards have fewer")


def _row(shard: StoredShard, name: str, chunk: int, number: int, manifest: Manifest) -> Row:
    tokens, pieces = shard.tokens(chunk), shard.pieces(chunk)
    width = tokens.shape[1]
    first, behind = number * width, (number + 1) * width
    end_of_document = manifest.tokenizer.end_of_document_id
    row_pieces = []
    for place in np.flatnonzero((pieces.start < behind) & (pieces.end > first)).tolist():
        start, end, text_bytes = (int(column[place]) for column in (pieces.start, pieces.end, pieces.bytes))
        row_pieces.append(
            RowPiece(
                source=pieces.sources[pieces.source[place]],
                start=max(start - first, 0),
                end=min(end, behind) - first,
                begins=start >= first and text_bytes > 0,
                ends=end <= behind and int(tokens.reshape(-1)[end - 1]) == end_of_document,
                text_bytes=text_bytes,
            )
        )
    padding = max(behind - (tokens.size - pieces.padding_tokens), 0)
    return Row(tokens[number], row_pieces, padding, name, chunk, number)


def _tokenizer(shards: Path, manifest: Manifest) -> Tokenizer:
    path = shards / TOKENIZER_PATH
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}: bring it back") from error
    if digest != manifest.tokenizer.sha256:
        raise WorldError(f"{path} is not the tokenizer that made these shards: bring it back")
    return Tokenizer.from_file(str(path))


def _title(piece: RowPiece, row_tokens: int) -> str:
    told = [piece.source, f"tokens {piece.start:,} to {piece.end - 1:,} of {row_tokens:,}"]
    if piece.text_bytes:
        told.append(f"{piece.text_bytes:,} bytes of text in all")
    if not piece.begins:
        told.append("goes on from before")
    if not piece.ends:
        told.append("goes on in another row")
    return "── " + " · ".join(map(_visible, told))


def _print_text(tokenizer: Tokenizer, ids: list[int], ends: bool) -> None:
    text_ids = ids[:-1] if ends else ids
    # A piece may begin or end inside a character; the decoder shows that as U+FFFD.
    text = Text(_visible(tokenizer.decode(text_ids, skip_special_tokens=False)))
    if ends:
        text.append(_token(tokenizer, ids[-1]), style=END_STYLE)
    console.print(text, soft_wrap=not console.is_terminal)


def _print_tokens(tokenizer: Tokenizer, ids: list[int], start: int, end_of_document: int) -> None:
    """A cell a token: its place in the row, its id, its text."""

    def cells() -> Iterator[Text]:
        for place, token in enumerate(ids, start):
            shown = _token(tokenizer, token) if token == end_of_document else _quoted(tokenizer, token)
            style = END_STYLE if token == end_of_document else ""
            yield Text.assemble((f"{place:>5} ", DIM_STYLE), (f"{token:>6} ", DIM_STYLE), (shown, style))

    console.print(Columns(cells(), padding=(0, 3)), soft_wrap=False)


def _quoted(tokenizer: Tokenizer, token: int) -> str:
    text = tokenizer.decode([token], skip_special_tokens=False)
    # Part of a character only: the vocabulary's own spelling of its bytes says more than U+FFFD.
    return _token(tokenizer, token) if "\ufffd" in text else repr(text)


def _token(tokenizer: Tokenizer, token: int) -> str:
    name = tokenizer.id_to_token(token)
    return f"<id {token}, not in the vocabulary>" if name is None else _visible(name)


def _visible(text: str) -> str:
    """Control characters as pictures, so that no text can move the cursor; line feeds and tabs stay."""
    if text.isprintable():
        return text
    return "".join(_picture(letter) for letter in text)


def _picture(letter: str) -> str:
    if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs"):
        return letter
    code = ord(letter)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\x{code:02x}"
