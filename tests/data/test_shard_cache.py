"""Shards of a URL: the same rows, each file fetched once, nothing wrong left by kills, room kept."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.manifest import manifest_hash, read_manifest, write_manifest
from pipeline.data.rows import RowReader
from pipeline.data.shard_cache import CachedShards, cache_folder, is_url, room_note
from pipeline.errors import UserError, WorldError
from pipeline.recipe_reader import read_recipe
from tests.data.random_shards import DataSet, MakeShards
from tests.data.shard_server import PLENTY, Server, opened


def cached_tars(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*.tar"))


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_rows_of_a_url_are_those_of_the_folder(data_set: DataSet, server: Server, tmp_path: Path, scheme: str) -> None:
    folder, _, expected = data_set
    url = server.url if scheme == "http" else folder.as_uri()
    for round_number in range(2):
        source = opened(url + "/" * round_number, tmp_path)
        local = cache_folder(url, str(tmp_path / "cache"))
        manifest = read_manifest(local)
        assert manifest_hash(read_manifest(local)) == manifest_hash(read_manifest(folder))
        assert (local / "tokenizer" / "tokenizer_config.json").is_file()
        with RowReader(source, manifest, "train") as reader:
            order = np.random.default_rng(0).permutation(len(expected))
            np.testing.assert_array_equal(reader.read(order), expected[order])
    if scheme == "http":
        shards = {name: count for name, count in server.requests.items() if name.startswith("train")}
        assert set(shards.values()) == {1}
        assert len(shards) == 2 * len(manifest.train.shards)
        assert server.requests["tokenizer/tokenizer.json"] == 1
        assert server.requests["manifest.json"] == 2
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_nothing_is_fetched_before_a_row_is_asked_for(data_set: DataSet, server: Server, tmp_path: Path) -> None:
    with RowReader(opened(server.url, tmp_path), data_set[1], "train") as reader:
        assert not cached_tars(tmp_path)
        reader.read([0])
        assert len(cached_tars(tmp_path)) == 1


def test_what_came_wrong_is_fetched_once_more(data_set: DataSet, server: Server, tmp_path: Path) -> None:
    _, manifest, expected = data_set

    def first_time_wrong(name: str, content: bytes) -> bytes:
        return content if server.requests[name] > 1 else content[:-1] + b"!"

    server.change = first_time_wrong
    # manifest.json and the tokenizer's configuration have no hash to compare with.
    server.requests.update({"manifest.json": 1, "tokenizer/tokenizer_config.json": 1})
    with RowReader(opened(server.url, tmp_path), manifest, "train") as reader:
        np.testing.assert_array_equal(reader.read(np.arange(reader.rows)), expected)
    assert server.requests["train-000000.tar"] == server.requests["train-000000.idx"] == 2


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("train-000001.tar", lambda content: content[:600] + bytes([content[600] ^ 1]) + content[601:], "has SHA-256"),
        ("train-000001.tar", lambda content: content[:-512], "cannot be fetched|bytes, its manifest says"),
        ("train-000001.idx", lambda content: content[:-1] + b"!", "is not the index"),
        ("tokenizer/tokenizer.json", lambda content: b"[]", "is not the one of the manifest"),
    ],
)
def test_what_stays_wrong_is_named_by_its_url(
    data_set: DataSet, server: Server, tmp_path: Path, name: str, change: Callable[[bytes], bytes], told: str
) -> None:
    server.change = lambda asked, content: change(content) if asked == name else content
    with (
        pytest.raises(WorldError, match=told) as raised,
        RowReader(opened(server.url, tmp_path), data_set[1], "train") as reader,
    ):
        reader.read(np.arange(reader.rows))
    assert f"{server.url}/{name}" in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert not list((tmp_path / "cache").rglob(f"*{name}"))


@pytest.mark.parametrize("missing", ["train-000001.tar", "train-000001.idx"])
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_a_missing_file_is_named(data_set: DataSet, server: Server, tmp_path: Path, missing: str, scheme: str) -> None:
    folder, manifest, _ = data_set
    (folder / missing).unlink()
    url = server.url if scheme == "http" else folder.as_uri()
    source = opened(url, tmp_path)
    with pytest.raises(WorldError, match=missing):
        reader = RowReader(source, manifest, "train")
        assert scheme == "http", "a listing shows it before anything is read"
        reader.read(np.arange(reader.rows))


def test_a_shard_of_another_size_is_named_by_the_listing(data_set: DataSet, tmp_path: Path) -> None:
    folder, manifest, _ = data_set
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(WorldError, match=r"file:///.*train-000001\.tar has \d+ bytes, its manifest says"):
        RowReader(opened(folder.as_uri(), tmp_path), manifest, "train")


def test_mistakes_in_the_recipe_are_one_line(data_set: DataSet, server: Server, tmp_path: Path) -> None:
    for url, told in (
        (f"{server.url}/elsewhere", "manifest.json is missing: these shards are not finished, or the URL is wrong"),
        ("nosuch://bucket/shards", "Protocol not known: nosuch"),
    ):
        with pytest.raises(UserError, match=told) as raised:
            opened(url, tmp_path)
        assert "\n" not in str(raised.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache: .*file"):
        CachedShards(server.url, cache_folder(server.url, str(tmp_path / "file")), PLENTY)


def test_a_server_that_is_away_is_the_worlds_fault(data_set: DataSet, server: Server, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(WorldError, match=rf"{server.url}/manifest.json cannot be fetched"):
        opened(server.url, tmp_path)


def test_ranks_that_need_the_same_files_fetch_them_once(data_set: DataSet, server: Server, tmp_path: Path) -> None:
    _, manifest, expected = data_set

    def read(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(len(expected))
        with RowReader(opened(server.url, tmp_path), manifest, "train") as reader:
            return bool(np.array_equal(reader.read(order), expected[order]))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(8)))
    assert {count for name, count in server.requests.items() if name.startswith("train")} == {1}


def test_what_was_used_longest_ago_goes_and_what_is_open_stays(
    data_set: DataSet, server: Server, tmp_path: Path
) -> None:
    _, manifest, _ = data_set
    shards = manifest.train.shards
    room = sum(shard.bytes for shard in shards[:4]) + 2000  # and their indices
    source = opened(server.url, tmp_path, room)
    held = source.open(shards[0])
    for number in (1, 2, 3, 1, 4, 5):
        os.close(source.open(shards[number]))
        time.sleep(0.01)
    names = {path.name[17:] for path in cached_tars(tmp_path)}
    assert names == {shards[number].name for number in (0, 1, 4, 5)}
    os.close(held)
    os.close(source.open(shards[6]))
    assert shards[0].name not in {path.name[17:] for path in cached_tars(tmp_path)}
    assert sum(path.stat().st_size for path in cached_tars(tmp_path)) <= room


def test_a_cache_smaller_than_the_data_set_gives_the_same_rows(
    data_set: DataSet, server: Server, tmp_path: Path
) -> None:
    _, manifest, expected = data_set
    largest = max(shard.bytes for shard in manifest.train.shards)

    def read(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(len(expected))
        with RowReader(opened(server.url, tmp_path, 3 * largest), manifest, "train") as reader:
            assert reader.rows == len(expected)
            return bool(np.array_equal(reader.read(order), expected[order]))

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(read, range(3)))
    # What was open at the end may stand above it until the next file comes.
    assert sum(path.stat().st_size for path in cached_tars(tmp_path)) <= 4 * largest


def test_a_remade_data_set_under_the_same_url_is_another(
    data_set: DataSet, server: Server, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder, manifest, expected = data_set
    with RowReader(opened(server.url, tmp_path), manifest, "train") as reader:
        np.testing.assert_array_equal(reader.read([0]), expected[:1])
    _, other, rows = make_shards(tokens=3000, seq_len=15)
    write_manifest(folder, other.model_copy(update={"tokenizer": manifest.tokenizer}))
    source = opened(server.url, tmp_path)
    with RowReader(source, read_manifest(cache_folder(server.url, str(tmp_path / "cache"))), "train") as reader:
        np.testing.assert_array_equal(reader.read(np.arange(reader.rows)), rows)


def test_a_file_that_a_power_cut_shortened_is_fetched_anew(data_set: DataSet, server: Server, tmp_path: Path) -> None:
    _, manifest, expected = data_set
    with RowReader(opened(server.url, tmp_path), manifest, "train") as reader:
        reader.read(np.arange(reader.rows))
    cached_tars(tmp_path)[0].write_bytes(b"")
    next((tmp_path / "cache").glob("*/*.idx")).write_bytes(b"")
    with RowReader(opened(server.url, tmp_path), manifest, "train") as reader:
        np.testing.assert_array_equal(reader.read(np.arange(reader.rows)), expected)


def read_forever(url: str, cache: Path, cache_bytes: int) -> None:
    source = opened(url, cache, cache_bytes)
    manifest = read_manifest(cache_folder(url, str(cache / "cache")))
    generator = np.random.default_rng(os.getpid())
    while True:
        with RowReader(source, manifest, "train") as reader:
            reader.read(generator.permutation(reader.rows))


@pytest.mark.slow
def test_kills_leave_nothing_wrong(data_set: DataSet, server: Server, tmp_path: Path) -> None:
    _, manifest, expected = data_set
    url, room = server.url, 5 * max(shard.bytes for shard in manifest.train.shards)

    def slowly(name: str, content: bytes) -> bytes:
        time.sleep(0.005)
        return content

    server.change = slowly
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    generator = random.Random(seed)
    context = multiprocessing.get_context("spawn")
    for _ in range(5):
        readers = [context.Process(target=read_forever, args=(url, tmp_path, room)) for _ in range(2)]
        for reader in readers:
            reader.start()
        before = sum(server.requests.values())
        while sum(server.requests.values()) < before + generator.randrange(5, 60):
            assert all(reader.is_alive() for reader in readers)
            time.sleep(0.002)
        for reader in readers:
            assert reader.pid is not None
            os.kill(reader.pid, signal.SIGKILL)
            reader.join()
        entries = {shard.sha256[:16]: shard.sha256 for shard in manifest.train.shards}
        for path in cached_tars(tmp_path):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == entries[path.name[:16]]
    with RowReader(opened(url, tmp_path, room), manifest, "train") as reader:
        np.testing.assert_array_equal(reader.read(np.arange(reader.rows)), expected)
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_shuffled_set_that_the_cache_cannot_hold_is_told(data_set: DataSet) -> None:
    shards = data_set[1].train.shards
    needed = sum(shard.bytes for shard in shards)
    told = room_note("s3://a/pile", needed - 1, "rows", shards)
    assert told is not None and told.startswith(f"data.shuffle rows reads from all {len(shards)} shards")
    assert room_note("s3://a/pile", needed, "chunks", shards) is None
    assert room_note("s3://a/pile", 1, "none", shards) is None
    assert room_note("shards", 1, "rows", shards) is None


@pytest.mark.parametrize("wrong", ["a link", "writable by others", "a file"])
def test_a_cache_that_another_user_may_have_put_there_is_refused(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    url = data_set[0].as_uri()
    root = cache_folder(url, "").parent
    CachedShards(url, cache_folder(url, ""), PLENTY)
    assert root.stat().st_mode & 0o077 == 0
    elsewhere = root.rename(tmp_path / "elsewhere")
    if wrong == "a link":
        root.symlink_to(elsewhere)
    elif wrong == "a file":
        root.write_text("")
    else:
        root.mkdir()
        root.chmod(0o770)
    with pytest.raises(UserError, match=rf"data.cache: {root}") as raised:
        CachedShards(url, cache_folder(url, ""), PLENTY)
    assert "\n" not in str(raised.value)
    # One that the recipe names may be shared.
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    CachedShards(url, cache_folder(url, str(shared)), PLENTY)


@pytest.mark.parametrize(
    "url",
    [
        "https://ada:lovelace@host/pile",
        "https://lovelace@host/pile",
        "s3://bucket/pile?token=lovelace",
        "simplecache::https://ada:lovelace@host/pile",
        "zip://x::https://ada:lovelace@host/pile.zip",
    ],
)
def test_a_url_with_a_secret_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(UserError, match=r"data.shards: .*would be published.*fsspec") as raised:
        read_recipe("quickstart", [f"data.shards={url}"])
    assert "lovelace" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shards", ["s3://bucket/a@b/pile", "https://host:80/pile", "/data/a@b?", "shards"])
def test_what_is_no_secret_is_taken(shards: str) -> None:
    assert read_recipe("quickstart", [f"data.shards={shards}"]).data.shards == shards


def test_folders_and_urls_are_told_apart(tmp_path: Path) -> None:
    assert not is_url("shards") and not is_url("/data/shards") and not is_url("~/a:b/c")
    assert is_url("s3://bucket/pile") and is_url("https://host/pile")
    one, other = (cache_folder(url, str(tmp_path)) for url in ("s3://a/pile", "s3://b/pile"))
    assert one.name.startswith("pile-") and one != other and one == cache_folder("s3://a/pile/", str(tmp_path))
    assert str(os.getuid()) in str(cache_folder("s3://a/pile", ""))
