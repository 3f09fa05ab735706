"""Compressed files are read whole, or refused by name; nothing is passed over."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from tokenization.sources.compressed import check_readable, read_blocks, split_lines

SKIPPABLE_FRAME = struct.pack("<II", 0x184D2A50, 5) + b"abcde"
CONTENT = b"".join(f"line {number} of some text\n".encode() for number in range(20_000))


def compress(suffix: str, content: bytes) -> bytes:
    # With a checksum, as the zstd program writes by default; gzip always has one.
    return (
        zstandard.ZstdCompressor(write_checksum=True).compress(content) if suffix == ".zst" else gzip.compress(content)
    )


def read(path: Path) -> bytes:
    return b"".join(read_blocks(path, lambda block: None))


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_all_frames_of_a_file_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(compress(suffix, CONTENT) + compress(suffix, b"") + compress(suffix, b"the end"))
    assert read(path) == CONTENT + b"the end"


def test_skippable_frames_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.zst"
    path.write_bytes(SKIPPABLE_FRAME + compress(".zst", CONTENT) + SKIPPABLE_FRAME)
    check_readable(path)
    assert read(path) == CONTENT


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_a_file_cut_anywhere_but_between_frames_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    first, second = compress(suffix, CONTENT), compress(suffix, CONTENT[::-1])
    cut = int(share * len(first + second))
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes((first + second)[:cut])
    if cut == len(first):
        assert read(path) == CONTENT
    else:
        with pytest.raises(WorldError, match=rf"x\.jsonl\{suffix} is cut short"):
            read(path)


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_damage_and_rubbish_behind_the_data_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    whole = compress(suffix, CONTENT)
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
    for content in (damaged, whole + b"rubbish behind"):
        path.write_bytes(content)
        with pytest.raises(WorldError, match=rf"x\.jsonl\{suffix} is (corrupt|cut short)"):
            read(path)


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_plain_text_under_a_compressed_name_is_refused_before_reading(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    for content in (b'{"text": "plain"}\n', b""):
        path.write_bytes(content)
        with pytest.raises(WorldError, match="x.jsonl"):
            check_readable(path)
        with pytest.raises(WorldError, match="x.jsonl"):
            read(path)


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_compressed_data_under_a_plain_name_is_the_users_mistake(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(compress(suffix, CONTENT))
    with pytest.raises(UserError, match=f"ends in {suffix}"):
        check_readable(path)


@pytest.mark.parametrize("suffix", [".zst", ".gz", ""])
def test_every_raw_byte_passes_the_callback_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(compress(suffix, CONTENT) if suffix else CONTENT)
    digest = hashlib.sha256()
    assert b"".join(read_blocks(path, digest.update)) == CONTENT
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()


@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(st.text(alphabet="a\n", max_size=5).map(str.encode), max_size=6))
def test_lines_do_not_depend_on_the_blocks(blocks: list[bytes]) -> None:
    whole = b"".join(blocks)
    expected = whole.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert list(split_lines(iter(blocks))) == expected
