from __future__ import annotations

import json
import subprocess
from pathlib import Path

from launch.launch_folder import all_versions, source_revision, write_launch
from pipeline.recipe_reader import read_recipe
from tests.launch.targets.launched import bash, files_of, launch_of, programs


def test_the_folder_has_all_to_start_it_again(tmp_path):
    launch = launch_of("local", tmp_path / "a b")
    written = {path.name for path in write_launch(launch, files_of(launch))}
    assert written == {
        *("start.sh", "tokenize.sh", "train.sh", "evaluate.sh", "release.sh"),
        *("recipe.yaml", "versions.json", "revision.json", "source.diff"),
    }
    assert read_recipe(str(launch.recipe_file)) == launch.recipe
    assert json.loads((launch.path / "versions.json").read_text())["torch"]
    # Of the recipe it was launched from nothing is needed any more.
    texts = [path.read_text() for path in launch.path.glob("*.sh")]
    assert all(str(launch.recipe_file) in text or "start.sh" in text for text in texts)
    assert (launch.path / "train.sh").stat().st_mode & 0o111


def test_another_launch_takes_the_place_of_the_first_and_of_no_other_file(tmp_path):
    launch = launch_of("local", tmp_path)
    write_launch(launch, {**files_of(launch), "left.sh": "#!/bin/bash\n"})
    beside = launch.path.parent / "preflight.json"
    beside.write_text("{}")
    write_launch(launch, files_of(launch))
    assert not (launch.path / "left.sh").exists()
    assert beside.exists()
    assert [path.name for path in launch.path.parent.iterdir() if path != beside] == ["local"]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_patch_makes_the_source_what_it_was(tmp_path):
    project = tmp_path / "project"
    (project / "pipeline").mkdir(parents=True)
    (project / "pipeline/__init__.py").write_text("one\n")
    assert source_revision(project)[0]["commit"] is None
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    clean, nothing = source_revision(project)
    assert (clean["changed"], nothing) == (False, "")
    (project / "pipeline/__init__.py").write_text("two\n")
    (project / "pipeline/new file.py").write_text("new\n")
    (project / "pipeline/large").write_bytes(b"0" * (2 << 20))
    (project / ".env").write_text("HF_TOKEN=a secret\n")
    revision, patch = source_revision(project)
    assert revision == {"commit": clean["commit"], "changed": True, "not_kept": [".env", "pipeline/large"]}
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", str(project), str(copy))
    (tmp_path / "patch").write_text(patch)
    git(copy, "apply", str(tmp_path / "patch"))
    assert (copy / "pipeline/__init__.py").read_text() == "two\n"
    assert (copy / "pipeline/new file.py").read_text() == "new\n"


def test_versions_are_of_every_package():
    versions = all_versions()
    assert {"python", "torch", "deepspeed", "pytest"} <= set(versions)


def test_stages_of_this_machine_are_run_in_turn_until_one_fails(tmp_path):
    stage = 'echo "$3" >>"$HOME/called"; [[ "$3" != "${FAILS-}" ]] || exit 75'
    environment = programs(tmp_path / "programs", stage=stage)
    launch = launch_of("local", tmp_path / "it's", python="stage")
    write_launch(launch, files_of(launch))
    called = tmp_path / "programs" / "called"
    assert bash(launch.path / "start.sh", environment=environment).returncode == 0
    assert called.read_text().split() == ["tokenize", "train", "evaluate", "release"]
    assert bash(launch.path / "start.sh", "evaluate", environment=environment).returncode == 0
    assert called.read_text().split()[4:] == ["evaluate"]
    assert bash(launch.path / "start.sh", environment={**environment, "FAILS": "train"}).returncode == 75
    assert called.read_text().split()[5:] == ["tokenize", "train"]
    assert bash(launch.path / "start.sh", "training", environment=environment).returncode == 2
