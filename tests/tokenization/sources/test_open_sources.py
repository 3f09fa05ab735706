"""Sources are opened with what is given twice told, by whatever path it is given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.recipe_tokenize import TokenizeSection
from tokenization.sources.open_sources import open_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (tmp_path / "real" / "deep" / f"{name}.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "other.jsonl").symlink_to(tmp_path / "real" / "deep" / "b.jsonl")
    return tmp_path


def section_of(*sources: dict) -> TokenizeSection:
    return TokenizeSection.model_validate({"tokenizer": "x", "seq_len": 4, "sources": sources})


def lines(name: str, *files: Path, **fields) -> dict:
    share = {} if "validation" in fields else {"validation_share": 0.5}
    return {"kind": "jsonl", "name": name, "train": [str(file) for file in files], **share, **fields}


def other_ways(folder: Path) -> list[Path]:
    return [
        folder / "real" / "deep" / "b.jsonl",
        folder / "other.jsonl",
        folder / "linked" / "deep" / "b.jsonl",
        folder / "linked" / "deep" / ".." / "deep" / "b.jsonl",
    ]


@pytest.mark.parametrize("way", range(4))
def test_a_file_of_two_sources_is_told_by_any_path(folder: Path, way: int) -> None:
    deep = folder / "real" / "deep"
    section = section_of(lines("one", deep / "*.jsonl"), lines("two", other_ways(folder)[way]))
    with pytest.raises(UserError, match=r"b\.jsonl: read by two sources, one and two: give each file to one"):
        open_sources(section, 0, None)
    assert len(open_sources(section, 0, None, check=False)) == 2
    both = section_of(lines("one", deep / "*.jsonl"), lines("two", folder / "linked" / "deep" / "*.jsonl"))
    with pytest.raises(UserError, match=r"a\.jsonl and 2 more files: read by two sources"):
        open_sources(both, 0, None)


@pytest.mark.parametrize("way", range(4))
def test_training_on_validation_is_told_by_any_path(folder: Path, way: int) -> None:
    path = other_ways(folder)[way]
    train = lines("one", folder / "real" / "deep" / "*.jsonl", validation=[str(path)])
    for section in (
        section_of(train),
        section_of({**train, "validation": [str(path)]}, lines("two", folder / "x.jsonl")),
    ):
        (folder / "x.jsonl").write_text('{"text": "x"}\n')
        with pytest.raises(UserError, match=r"b\.jsonl|other\.jsonl"):
            open_sources(section, 0, None)
    assert len(open_sources(section_of(train), 0, None, check=False)) == 1


def test_files_of_the_same_name_in_two_folders_are_two(folder: Path) -> None:
    (folder / "second").mkdir()
    (folder / "second" / "a.jsonl").write_text('{"text": "b"}\n')
    os.symlink(folder / "second" / "a.jsonl", folder / "a.jsonl")
    section = section_of(lines("one", folder / "real" / "deep" / "a.jsonl"), lines("two", folder / "a.jsonl"))
    assert len(open_sources(section, 0, None)) == 2


def test_links_are_the_only_files_that_are_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of `os.path.realpath` asks the file system, which takes long over a network."""
    section = section_of(
        lines("one", folder / "real" / "deep" / "*.jsonl"), lines("two", folder / "other.jsonl", weight=1)
    )
    asked: list[str] = []
    real = os.path.realpath

    def counting(path) -> str:
        asked.append(os.fspath(path))
        return real(path)

    monkeypatch.setattr(os.path, "realpath", counting)
    with pytest.raises(UserError, match="two sources"):
        open_sources(section, 0, None)
    assert sorted(asked) == sorted([str(folder / "real" / "deep"), str(folder), str(real(folder) + "/other.jsonl")])
