"""Scripts bear whatever a path may hold: shellcheck and bash find nothing wrong, and what arrives is what was meant."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.targets.shell_script import words
from tests.launch.targets.launched import TARGETS, bash, launch_of, programs, scripts_of

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
FOLDERS = st.lists(
    st.text(st.one_of(st.sampled_from(" '\"$`\\!*?[](){}<>|&;#~%=+\n\té"), st.characters(codec="utf-8")), min_size=1)
    .map(lambda part: part.replace("/", "_").replace("\0", "_"))
    .filter(lambda part: part not in (".", "..")),
    min_size=1,
    max_size=3,
).map(lambda parts: Path("/", *parts))
NASTY = Path('/a b/it\'s/"q"/$HOME `id` $(id)/back\\slash/100%h*?/ü')
PRINTED = "#!/bin/bash\nprintf '%s\\0' \"$@\""


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_bash_reads_words_back(arguments):
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {words(arguments)}"], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == arguments


@pytest.mark.parametrize("target", TARGETS)
@given(name=NAMES, root=FOLDERS)
@settings(max_examples=8, deadline=None)
def test_bash_can_parse_every_script(target, name, root):
    for text in scripts_of(launch_of(target, root, name)).values():
        done = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), text


@pytest.mark.parametrize("target", ["local", "slurm"])
@given(name=NAMES, root=FOLDERS)
@settings(max_examples=8, deadline=None)
def test_a_stage_gets_its_paths_as_they_are(tmp_path_factory, target, name, root):
    """The script itself, with the interpreter (and srun) replaced by programs that print what they are given."""
    folder = tmp_path_factory.mktemp("programs")
    environment = programs(folder, srun='shift 3; exec "$@"', scontrol="echo NodeAddr=n1", printed=PRINTED)
    launch = launch_of(target, root, name, python="printed")
    script = "evaluate.sbatch" if target == "slurm" else "evaluate.sh"
    path = folder / script
    path.write_text(scripts_of(launch)[script], encoding="utf-8")
    done = bash(path, environment=environment)
    assert done.returncode == 0, done.stderr
    expected = [*launch.arguments("evaluate")[1:]]
    assert str(root) in expected
    assert done.stdout.split("\0")[:-1] == expected


@pytest.mark.parametrize("root", [Path("/runs"), NASTY], ids=["plain", "nasty"])
@pytest.mark.parametrize("variant", ["plain", "everything"])
@pytest.mark.parametrize("target", TARGETS)
def test_shellcheck_finds_nothing(tmp_path, target, variant, root):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian package shellcheck)")
    more = {}
    if variant == "everything":
        more = {"network_interface": "ib0", "gpus_per_node": 8, "ranks_per_node": 8}
        more["slurm"] = {"partition": "main", "time_limit": "1-00:00:00", "chain_jobs": 3, "options": ["--exclusive"]}
        if target != "kubernetes":
            more["modules"] = ["cuda/12.4"]
        if target == "slurm":
            more["modules"] = []
            more["container"] = {"kind": "apptainer", "image": "/images/it's $one.sif", "mounts": ["/data:/data:ro"]}
        if target == "hosts":
            more["hosts"] = {"launcher": "openmpi", "launcher_options": ["--allow-run-as-root", "a b"]}
        if target == "kubernetes":
            more["kubernetes"] = {"kind": "trainjob", "image": "a/b:c", "volume_claim": "runs"}
    found = scripts_of(launch_of(target, root, **more))
    assert "start.sh" in found
    for name, text in found.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["shellcheck", *(str(tmp_path / name) for name in found)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
