"""Revisions below a release: named as Pythia's, and never lost when the release changes."""

import os

import pytest

from pipeline.errors import UserError
from pipeline.release.revision import checkpoint_of, folder_of, put_in_place, repair


@pytest.mark.parametrize(
    ("revision", "checkpoint", "expected"),
    [
        ("main", "latest", "latest"),
        ("main", "step-00000005", "step-00000005"),
        ("step1000", "latest", "step-00001000"),
        ("step0", "step-00000000", "step-00000000"),
    ],
)
def test_a_revision_names_its_checkpoint(revision, checkpoint, expected):
    assert checkpoint_of(revision, checkpoint) == expected


@pytest.mark.parametrize("revision", ["", "Main", "step", "step-5", "step05", "step1/../x", "step123456789", "v1"])
def test_other_names_are_the_users_mistake(revision):
    with pytest.raises(UserError, match="main, or step and a number"):
        checkpoint_of(revision, "latest")


def test_a_checkpoint_of_another_step_is_the_users_mistake():
    with pytest.raises(UserError, match="step5 is of step-00000005, not of step-00000006"):
        checkpoint_of("step5", "step-00000006")


@pytest.fixture
def folders(tmp_path):
    release, partial = tmp_path / "release", tmp_path / "release.partial"
    folder_of(release, "step5").mkdir(parents=True)
    (folder_of(release, "step5") / "file").write_text("five")
    (release / "file").write_text("old")
    partial.mkdir()
    (partial / "file").write_text("new")
    return release, partial


def state(release):
    return (release / "file").read_text(), (folder_of(release, "step5") / "file").read_text()


def test_revisions_move_with_the_release(folders):
    release, partial = folders
    put_in_place(partial, release)
    assert state(release) == ("new", "five")
    assert not partial.exists()


@pytest.mark.parametrize(("renames", "expected"), [(0, "old"), (1, "old"), (2, "old"), (3, "new")])
def test_a_kill_after_any_rename_loses_nothing(folders, monkeypatch, renames, expected):
    release, partial = folders
    replace, left = os.replace, iter([*range(renames), None])

    def killed(source, target):
        if next(left) is None:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    if renames < 3:
        with pytest.raises(KeyboardInterrupt):
            put_in_place(partial, release)
    else:
        put_in_place(partial, release)
    monkeypatch.undo()
    repair(release)
    repair(release)
    assert state(release) == (expected, "five")
