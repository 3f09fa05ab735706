"""Copies of a release at fsspec URLs: a folder and memory, both real file systems of fsspec."""

import json
import uuid

import fsspec
import pytest

from pipeline.durable import sha256_file
from pipeline.errors import UserError, WorldError
from pipeline.release.mirror import MARKER_NAME, Mirror
from pipeline.release.provenance import PROVENANCE_NAME, file_hashes
from pipeline.release.standing import wrong_files
from tests.release.test_standing import FILES, make


@pytest.fixture
def release(tmp_path):
    return make(tmp_path / "release")


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return (tmp_path / "published").as_uri() if request.param == "file" else f"memory://{uuid.uuid4().hex}/published"


def there(url):
    files, root = fsspec.core.url_to_fs(url)
    return {path.rpartition("/")[2]: files.cat_file(path) for path in files.find(root)}


def test_a_copy_is_the_release_and_the_same_command_does_nothing(release, url, capsys):
    Mirror(url, "main").publish(release)
    expected = {path.name: path.read_bytes() for path in release.iterdir()}
    assert there(url) == expected
    assert "4 files copied, 4 compared" in capsys.readouterr().out
    Mirror(url + "/", "main").publish(release)
    assert "nothing to do" in capsys.readouterr().out


def test_a_copy_in_a_folder_verifies_as_a_release(release, tmp_path):
    Mirror((tmp_path / "published").as_uri(), "main").publish(release)
    assert wrong_files(tmp_path / "published") == []


def test_a_changed_and_a_missing_file_are_replaced(release, url, capsys):
    Mirror(url, "main").publish(release)
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/README.md", b"edited")
    files.rm_file(f"{root}/config.json")
    capsys.readouterr()
    Mirror(url, "main").publish(release)
    assert "3 files copied" in capsys.readouterr().out  # these two and the provenance
    assert there(url) == {path.name: path.read_bytes() for path in release.iterdir()}


def test_another_release_takes_the_place_and_leaves_none_of_the_old_files(release, url, tmp_path):
    Mirror(url, "main").publish(release)
    (release / "model.safetensors").rename(release / "model-00001-of-00001.safetensors")
    other = json.loads((release / PROVENANCE_NAME).read_text())
    other["files"] = file_hashes(release)
    (release / PROVENANCE_NAME).write_text(json.dumps(other))
    Mirror(url, "main").publish(release)
    assert set(there(url)) == {*other["files"], PROVENANCE_NAME}


def test_revisions_lie_below_and_main_leaves_them(release, url, tmp_path):
    step = make(tmp_path / "step10", step=10)
    Mirror(url, "step10").publish(step)
    Mirror(url, "main").publish(release)
    files, root = fsspec.core.url_to_fs(url)
    found = {path.removeprefix(root).lstrip("/") for path in files.find(root)}
    names = {*FILES, PROVENANCE_NAME}
    assert found == names | {f"revisions/step10/{name}" for name in names}


def test_what_a_kill_leaves_is_no_release_and_the_same_command_finishes_it(release, url, monkeypatch):
    Mirror(url, "main").publish(release)
    other = dict.fromkeys(["README.md", "model.safetensors"], b"other content")
    for name, content in other.items():
        (release / name).write_bytes(content)
    provenance = json.loads((release / PROVENANCE_NAME).read_text())
    (release / PROVENANCE_NAME).write_text(json.dumps({**provenance, "files": file_hashes(release)}))
    mirror = Mirror(url, "main")
    put, kills = mirror._files.put_file, iter([False, True])

    def killed(source, target):
        if next(kills):
            raise KeyboardInterrupt
        put(source, target)

    monkeypatch.setattr(mirror._files, "put_file", killed)
    with pytest.raises(KeyboardInterrupt):
        mirror.publish(release)
    monkeypatch.undo()
    assert PROVENANCE_NAME not in there(url) and MARKER_NAME in there(url)
    Mirror(url, "main").publish(release)
    assert there(url) == {path.name: path.read_bytes() for path in release.iterdir()}


def test_files_of_others_are_not_touched(release, url):
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(root, exist_ok=True)
    files.pipe_file(f"{root}/thesis.tex", b"mine")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is of no release: take an empty place"):
        Mirror(url, "main").publish(release)
    assert there(url) == {"thesis.tex": b"mine"}


def test_a_place_that_cannot_be_written_is_named(release, tmp_path):
    (tmp_path / "published").write_text("a file")
    url = (tmp_path / "published").as_uri()
    with pytest.raises(WorldError, match=f"{url} does not take the release: .*; the same command continues"):
        Mirror(url, "main").publish(release)
    assert sha256_file(release / "README.md") == file_hashes(release)["README.md"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://ada:secret@host/x", "without a user name, password or query"),
        ("s3://bucket/x?signature=secret", "without a user name, password or query"),
        ("runs/published", "a URL is expected"),
        ("nothing://bucket/x", "nothing://bucket/x cannot be opened: Protocol not known: nothing"),
    ],
)
def test_what_is_no_place_is_the_users_mistake(url, told):
    with pytest.raises(UserError, match=told) as refused:
        Mirror(url, "main")
    assert "secret" not in str(refused.value)
