"""The hub's side as far as it goes without one: names, git's hashes, and a hub that is away."""

import subprocess

import huggingface_hub.constants
import pytest

from pipeline.errors import UserError, WorldError
from pipeline.release.hub import HubRepository, git_blob_id
from tests.release.test_standing import make


@pytest.mark.parametrize("repo", ["name", "a/b/c", "owner/--name", "", "owner/na me", "https://huggingface.co/a/b"])
def test_what_is_no_repository_is_the_users_mistake(repo):
    with pytest.raises(UserError, match="--push"):
        HubRepository(repo, "main")


def test_a_file_is_called_what_git_calls_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"naive\0content\n")
    done = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True)
    assert git_blob_id(path) == done.stdout.strip()


def test_a_hub_that_is_away_is_told_in_a_line_without_the_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    release = make(tmp_path / "release")
    with pytest.raises(WorldError, match=r"the hub does not take ada/tiny \(branch step5\): .*; the same") as refused:
        HubRepository("ada/tiny", "step5").publish(release)
    assert "hf_secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
