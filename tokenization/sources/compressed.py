"""The plain bytes of .zst, .gz and plain files, in bounded memory, with no damage passed over.

`zstandard`'s and `zlib`'s own stream readers end quietly where a file is cut in mid-frame, or read only the first of
several frames. Here every frame must end properly and the last one must end where the file ends. Changed bytes inside
a frame show where it carries a checksum: always in gzip, by default in what the zstd program writes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from pipeline.errors import UserError, WorldError

# Small enough that even a frame that unpacks a thousandfold stays within some megabytes.
COMPRESSED_BLOCK_BYTES = 16 << 10
PLAIN_BLOCK_BYTES = 1 << 20
# `zstd --long=31`, the widest window there is; some published dumps need it.
MAX_WINDOW_BYTES = 1 << 31
GZIP_WINDOW_BITS = 31
ESTIMATED_FROM_BYTES = 1 << 20

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
GZIP_MAGIC = b"\x1f\x8b"


class _FrameDecompressor(Protocol):
    """What zstandard's and zlib's decompression objects share: one frame (member), and what stood after it."""

    def decompress(self, data: bytes, /) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def check_readable(path: Path) -> None:
    """Look at the first bytes of `path`: is it there, and is it what its name says?

    Raises `WorldError` for a file that cannot be read or is not in the format of its suffix, `UserError` for
    compressed data under a plain name (it would be read as one long malformed line).
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix == ".zst" and not _is_zstandard(head):
        raise WorldError(f"{path} is not a zstandard file, whatever its name says: fetch it again")
    if path.suffix == ".gz" and not head.startswith(GZIP_MAGIC):
        raise WorldError(f"{path} is not a gzip file, whatever its name says: fetch it again")
    if not is_compressed(path) and (_is_zstandard(head) or head.startswith(GZIP_MAGIC)):
        suffix = ".zst" if _is_zstandard(head) else ".gz"
        raise UserError(f"{path} holds compressed data: give it a name that ends in {suffix}")


def is_compressed(path: Path) -> bool:
    """Whether its suffix says so."""
    return path.suffix in (".zst", ".gz")


def plain_size(path: Path) -> int:
    """Bytes of the plain text; of a compressed file about as many, as its first megabyte unpacks."""
    size = path.stat().st_size
    if not is_compressed(path):
        return size
    taken = plain = 0

    def on_raw_block(block: bytes) -> None:
        nonlocal taken
        taken += len(block)

    try:
        for block in read_blocks(path, on_raw_block):
            plain += len(block)
            if taken >= ESTIMATED_FROM_BYTES:
                break
    except WorldError:
        pass  # told when the damaged place is read for its text
    return size if not taken else round(plain * size / taken)


def read_blocks(path: Path, on_raw_block: Callable[[bytes], object], start: int = 0) -> Iterator[bytes]:
    """Yield the plain bytes of `path` from byte `start` of the plain text on, unpacked as its suffix says.

    `on_raw_block` gets every block as it lies on disk, so that the caller hashes and counts the file in the same pass;
    of a plain file only those from `start` on. Raises `WorldError` naming the file when it cannot be read, is corrupt,
    or ends before its data does.
    """
    if start and is_compressed(path):
        for block in read_blocks(path, on_raw_block):
            if start < len(block):
                yield block[start:]
            start = max(0, start - len(block))
        return
    if path.suffix == ".zst":
        packed = _read_raw(path, COMPRESSED_BLOCK_BYTES, on_raw_block)
        yield from _unpack(path, packed, "zstandard", _zstandard_frame)
    elif path.suffix == ".gz":
        packed = _read_raw(path, COMPRESSED_BLOCK_BYTES, on_raw_block)
        yield from _unpack(path, packed, "gzip", lambda: zlib.decompressobj(GZIP_WINDOW_BITS))
    else:
        yield from _read_raw(path, PLAIN_BLOCK_BYTES, on_raw_block, start)


def split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut blocks at line feeds; lines come without them. Holds no more than the longest line and one block."""
    unfinished: list[bytes] = []
    for block in blocks:
        first, *others = block.split(b"\n")
        unfinished.append(first)
        if others:
            yield b"".join(unfinished)
            yield from others[:-1]
            unfinished = [others[-1]]
    last = b"".join(unfinished)
    if last:
        yield last


def _is_zstandard(head: bytes) -> bool:
    # Parallel compressors put "skippable" frames (0x184D2A50 to 0x184D2A5F, little-endian) in front.
    return head == ZSTD_MAGIC or (head[1:] == b"\x2a\x4d\x18" and head[0] >> 4 == 5)


def _zstandard_frame() -> _FrameDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()


def _read_raw(path: Path, block_bytes: int, on_raw_block: Callable[[bytes], object], start: int = 0) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            while block := file.read(block_bytes):
                on_raw_block(block)
                yield block
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}") from error


def _unpack(
    path: Path, packed: Iterator[bytes], format_name: str, new_frame: Callable[[], _FrameDecompressor]
) -> Iterator[bytes]:
    frame: _FrameDecompressor | None = None
    frames = 0
    try:
        for block in packed:
            while block:
                if frame is None:
                    frame = new_frame()
                    frames += 1
                plain = frame.decompress(block)
                block = b""
                if frame.eof:
                    block = frame.unused_data
                    frame = None
                if plain:
                    yield plain
    except (zstandard.ZstdError, zlib.error) as error:
        raise WorldError(f"{path} is corrupt ({format_name}: {error}): fetch it again") from error
    if frame is not None or frames == 0:
        raise WorldError(f"{path} is cut short: it ends before its {format_name} data does: fetch it again")
