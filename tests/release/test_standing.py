"""A standing release against its provenance: every byte of every file counts."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from pipeline.release.provenance import (
    PROVENANCE_NAME,
    REVISIONS,
    Provenance,
    ReleaseIdentity,
    file_hashes,
    write_provenance,
)
from pipeline.release.standing import verify_and_tell, wrong_files

FILES = {"model.safetensors": b"\x00\x01weights" * 40, "README.md": "naïve card\n".encode(), "config.json": b"{}"}


def make(folder, step=20):
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    identity = ReleaseIdentity(
        step=step, save_id="s", recipe_hash="r", manifest_hash="m", dtype="float32", license="mit", max_shard_bytes=9
    )
    provenance = Provenance(
        name="tiny",
        identity=identity,
        recipe={"seed": 1, "quote": hashlib.sha256(b"").hexdigest()},
        rows=1,
        tokens=2,
        phase="only",
        parameters=3,
        metrics=None,
        mlflow_run_id=None,
        trained_with={},
        released_with={},
        command="adaponder release tiny",
        load_difference=0.0,
        rounding_difference=0.0,
        files=file_hashes(folder),
    )
    write_provenance(folder, provenance)
    return folder


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    return make(tmp_path_factory.mktemp("standing") / "release")


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_one_changed_byte_in_any_file_is_seen_and_named(standing, data):
    path = standing / data.draw(st.sampled_from([*FILES, PROVENANCE_NAME]))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(1, 255))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ value]) + whole[place + 1 :])
    try:
        (line,) = wrong_files(standing)
        assert line.startswith(str(path))
    finally:
        path.write_bytes(whole)
    assert not wrong_files(standing)


def test_files_that_are_missing_or_too_many_are_named(tmp_path, capsys):
    release = make(tmp_path / "release")
    verify_and_tell(release)
    assert "step 20, 4 files are as they were verified" in capsys.readouterr().out
    (release / "config.json").unlink()
    (release / "model-00001-of-00002.safetensors").write_bytes(b"left over")
    with pytest.raises(WorldError, match=r"is not the release that was verified: 2 files"):
        verify_and_tell(release)
    told = capsys.readouterr().err
    assert f"{release / 'config.json'} is missing" in told
    assert f"{release / 'model-00001-of-00002.safetensors'} is no file of the release" in told


def test_revisions_below_are_verified_too(tmp_path, capsys):
    release = make(tmp_path / "release")
    step = make(release / REVISIONS / "step10", step=10)
    verify_and_tell(release)
    assert "step 10, 4 files" in capsys.readouterr().out
    (step / "README.md").write_text("other")
    with pytest.raises(WorldError, match="1 file$"):
        verify_and_tell(release)
    assert str(step / "README.md") in capsys.readouterr().err


def test_what_is_no_release_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="holds no provenance.json, so it is no release"):
        verify_and_tell(tmp_path)


def test_an_older_release_without_the_hash_of_its_provenance_says_so(tmp_path, capsys):
    release = make(tmp_path / "release")
    path = release / PROVENANCE_NAME
    lines = path.read_text().splitlines()
    kept = [line for line in lines if '"own_sha256"' not in line]
    kept[-2] = kept[-2].removesuffix(",")
    path.write_text("\n".join(kept))
    verify_and_tell(release)
    assert "has no hash, it is of an older version" in capsys.readouterr().out
