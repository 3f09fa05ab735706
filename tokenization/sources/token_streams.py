"""Files that hold one run of token ids, mapped into memory: .npy, flat .bin, and Arrow files of packed rows.

The three give the same `TokenStream`; where documents begin and end in it is for `tokenization.sources.token_files`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError, WorldError
from tokenization.sources.arrow_files import read_arrow_batches, read_arrow_schema

BLOCK_TOKENS = 1 << 20
MASK_FIELD = "attention_mask"
SMALL_BYTES = 1 << 20


class TokenStream:
    """Token ids in a row; nothing is read or copied before it is asked for."""

    def __init__(self, path: Path, chunks: Sequence[np.ndarray], masks: Sequence[pa.Array] = ()) -> None:
        """`chunks`: arrays [tokens] of any integer type, mapped, that follow one another; `masks`: none, or for each
        of them its attention mask."""
        self._path = path
        self._masks = [mask for mask in masks if len(mask)]
        # Signed ids are taken for unsigned ones of their width: a negative one is then beyond every vocabulary.
        self._chunks = [chunk.view(chunk.dtype.str.replace("i", "u")) for chunk in chunks if len(chunk)]
        self._starts = np.concatenate([[0], np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, ids) over the positions from `start` to before `stop`, some megabytes at once.

        Raises `UserError` where one of them is padding.
        """
        while start < stop:
            number = int(np.searchsorted(self._starts, start, side="right")) - 1
            first = int(self._starts[number])
            end = min(stop, start + BLOCK_TOKENS, int(self._starts[number + 1]))
            if self._masks:
                mask = self._masks[number].slice(start - first, end - start).to_numpy(zero_copy_only=False)
                if not bool(mask.all()):
                    place = start + int(np.argmin(mask))
                    raise UserError(
                        f"{self._path}: token {place:,} is padding (its attention_mask is 0): only rows full of text "
                        "can be joined"
                    )
            yield start, self._chunks[number][start - first : end - first]
            start = end

    def take(self, start: int, stop: int) -> np.ndarray:
        """The ids [stop - start], uint8 to uint32: a view where they lie in one piece and are of such a type.

        Only for ids that were checked against a vocabulary: what does not fit in 32 bits is cut off.
        """
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        if start == stop:
            ids = np.empty(0, np.uint16)
        elif stop <= self._starts[number + 1]:
            first = int(self._starts[number])
            ids = self._chunks[number][start - first : stop - first]
        else:
            ids = np.concatenate([block for _, block in self.blocks(start, stop)])
        if ids.dtype.itemsize > 4:
            return ids.astype(np.uint32)
        return ids.astype(ids.dtype.newbyteorder("="), copy=False)


def open_token_stream(path: Path, bin_dtype: str, ids_field: str) -> TokenStream:
    """Map `path`: .npy and .arrow say their type, other files hold `bin_dtype`; `ids_field` is the column of .arrow.

    Raises `WorldError` where the file's size does not fit what it should hold or it is damaged, `UserError` where it
    holds something else than token ids.
    """
    if path.suffix == ".npy":
        return TokenStream(path, [_map_npy(path)])
    if path.suffix == ".arrow":
        return _map_arrow(path, ids_field)
    return map_bin(path, np.dtype(bin_dtype))


def map_bin(path: Path, dtype: np.dtype) -> TokenStream:
    """A file of nothing but ids of `dtype`. Raises `WorldError` where it ends inside one."""
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise WorldError(
            f"{path} has {size:,} bytes, which are no whole number of {dtype.name} tokens: it is cut short, "
            "or holds another type"
        )
    # An empty file cannot be mapped.
    return TokenStream(path, [np.memmap(path, dtype, mode="r")] if size else [])


def _map_npy(path: Path) -> np.ndarray:
    """The array of a .npy file; rows, where it has them, joined."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, by_column, dtype = read_header(file)
            offset = file.tell()
            size = file.seek(0, 2)
    except Exception as error:  # a header is Python text, whose damage numpy reports in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WorldError(f"{path} is not a .npy file, or is damaged ({reason}): fetch it again") from error
    if dtype.kind not in "iu" or len(shape) not in (1, 2) or (by_column and len(shape) == 2):
        layout = " stored column by column" if by_column and len(shape) == 2 else ""
        raise UserError(
            f"{path} holds an array of {dtype} with shape {shape}{layout}: whole numbers in one or two dimensions, "
            "row by row, are expected"
        )
    if size - offset != math.prod(shape) * dtype.itemsize:
        raise WorldError(
            f"{path} has {size - offset:,} bytes of tokens where its header says "
            f"{math.prod(shape) * dtype.itemsize:,}: fetch it again"
        )
    if math.prod(shape) == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(math.prod(shape),))


def _map_arrow(path: Path, ids_field: str) -> TokenStream:
    """The ids of an Arrow file, rows joined; of each record batch, no more than its place in the file is read."""
    schema = read_arrow_schema(path)
    for name in (ids_field, MASK_FIELD):
        if (times := schema.names.count(name)) > 1:
            raise UserError(f"{path} has {times} columns of the name {name}: rename all but one")
    if ids_field not in schema.names:
        raise UserError(f"{path} has no column {ids_field}: it has {', '.join(schema.names)} (ids_field names one)")
    kind = schema.field(ids_field).type
    if not _is_list(kind) or not pa.types.is_integer(kind.value_type):
        raise UserError(f"{path}: its column {ids_field} holds {kind}: lists of whole numbers are expected")
    if MASK_FIELD in schema.names:
        kind = schema.field(MASK_FIELD).type
        if not _is_list(kind) or not (pa.types.is_integer(kind.value_type) or pa.types.is_boolean(kind.value_type)):
            raise UserError(f"{path}: its column {MASK_FIELD} holds {kind}: lists of 0 and 1 are expected")
    columns = [ids_field, MASK_FIELD] if MASK_FIELD in schema.names else [ids_field]
    chunks: list[np.ndarray] = []
    masks: list[pa.Array] = []
    allocated = pa.total_allocated_bytes()
    for batch in read_arrow_batches(path, columns):
        ids, *mask = (batch.column(name).flatten() for name in columns)
        if ids.null_count or any(len(ids) != len(other) for other in mask):
            raise WorldError(f"{path}: its column {ids_field} has gaps, or an {MASK_FIELD} of another length")
        if any(other.null_count for other in mask):
            raise UserError(f"{path}: its column {MASK_FIELD} has gaps: lists of 0 and 1 are expected")
        if pa.total_allocated_bytes() - allocated > max(ids.nbytes, SMALL_BYTES):
            raise UserError(f"{path} is compressed, so that it cannot be mapped: save it without compression")
        chunks.append(ids.to_numpy(zero_copy_only=True))
        masks.extend(mask)
    return TokenStream(path, chunks, masks)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
