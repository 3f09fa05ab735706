"""What DeepSpeed's launcher is given, and that secrets reach the ranks without standing anywhere; pdsh is replaced by a
program that does what pdsh and a shell on the other side do. The real one is for tests/cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from secrets import token_hex

import pytest

from launch.hostfile import chosen_slots, read_hostfile
from launch.launch_folder import write_launch
from launch.targets.hosts import chosen, files
from pipeline.errors import UserError
from tests.launch.targets.launched import bash, launch_of, programs
from tests.launch.targets.test_quoting import NASTY

# pdsh -S -f N -w HOSTS [OPTIONS] COMMAND: what is left is read by a shell on each host, after % is replaced.
PDSH = r"""
printf '%s\n' "$*" >>"$HOME/command-lines"
shift 5; line="$*"; line="${line//%n/0}"; line="${line//%%/%}"
exec bash -c "$line"
"""
RANK = r"""
printf '%s\0' "$RANK" "$WORLD_SIZE" "$MASTER_ADDR" "${HF_TOKEN-}" "${MLFLOW_TRACKING_TOKEN-}" "$@" >"$HOME/rank"
exit "${CODE:-0}"
"""


@pytest.mark.slow
@pytest.mark.parametrize("below", ["plain", str(NASTY)[1:]], ids=["plain", "nasty"])
def test_the_real_launcher_starts_rank_sh_and_no_command_line_holds_a_secret(tmp_path, below):
    launch = launch_of(
        "hosts", tmp_path / below, nodes=1, python=str(tmp_path / "programs" / "python"), environment=["HF_TOKEN"]
    )
    write_launch(launch, files(launch, {"n1": [0]}))
    secret = token_hex(8)
    python = f'if [[ "$2" == pipeline.training.worker ]]; then {RANK}\nfi\nexec {sys.executable} "$@"'
    environment = {
        **programs(tmp_path / "programs", pdsh=PDSH, python=python),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DS_ACCELERATOR": "cpu",
        "HF_TOKEN": f"a {secret}'$x",
        "MLFLOW_TRACKING_TOKEN": f"another {secret}",
        "CODE": "75",
    }
    done = bash(launch.path / "train.sh", environment=environment)
    assert done.returncode == 75, done.stderr
    got = (tmp_path / "programs" / "rank").read_text().split("\0")[:-1]
    assert got[:5] == ["0", "1", "n1", f"a {secret}'$x", ""]
    assert got[5:] == ["-m", *launch.worker()]
    written = [path.read_text() for path in (*launch.path.iterdir(), *launch.folder.logs.iterdir())]
    lines = (tmp_path / "programs" / "command-lines").read_text()
    assert all(secret not in text for text in (lines, done.stderr, done.stdout, *written))


def test_sigterm_stops_all_ranks_by_the_file_and_leaves_none(tmp_path):
    """As rank 0 does, the program in the launcher's place takes the file away when it has saved."""
    stop = tmp_path / "tiny" / "STOP"
    waits = f"""
touch {tmp_path}/began
for _ in {{1..200}}; do
    if [[ -e {stop} ]]; then rm {stop}; exit 0; fi
    sleep 0.05
done
exit 1"""
    launch = launch_of("hosts", tmp_path, python="runner")
    launch.path.mkdir(parents=True)
    (launch.path / "train.sh").write_text(files(launch, {"n1": [0]})["train.sh"])
    process = subprocess.Popen(
        ["bash", str(launch.path / "train.sh")], env=programs(tmp_path / "programs", runner=waits)
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert not stop.exists()


def test_a_name_that_did_not_arrive(tmp_path):
    (tmp_path / "rank.sh").write_text(files(launch_of("hosts", tmp_path), {"n1": [0]})["rank.sh"])
    environment = {**programs(tmp_path / "programs"), "ADAPONDER_FORWARDED": "HF_TOKEN"}
    done = bash(tmp_path / "rank.sh", environment=environment)
    assert done.returncode == 2
    assert "HF_TOKEN did not arrive: add 'AcceptEnv ADAPONDER_FORWARD_*' to sshd_config" in done.stderr


def test_slots_that_are_not_the_first_ones_are_named():
    written = files(launch_of("hosts", Path("/runs")), {"n1": [0, 1], "n2": [1, 3]})
    assert written["hostfile"] == "n1 slots=2\nn2 slots=4\n"
    assert "--include n1:0,1@n2:1,3 " in written["train.sh"]
    assert "--include" not in files(launch_of("hosts", Path("/runs")), {"n1": [0, 1]})["train.sh"]


def test_open_mpi_takes_names_only():
    hosts = {"launcher": "openmpi", "launcher_options": ["--allow-run-as-root"]}
    script = files(launch_of("hosts", Path("/runs"), hosts=hosts, network_interface="ib0"), {"n1": [0]})["train.sh"]
    assert 'launcher_options="--allow-run-as-root --mca btl_tcp_if_include ib0"' in script
    assert 'launcher_options+=" -x ADAPONDER_FORWARD_$name"' in script
    assert "--include" not in script and "--force_multi" not in script


HOSTS = {"n1": 4, "n2": 2}


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("", "", {"n1": [0, 1, 2, 3], "n2": [0, 1]}),
        ("n2", "", {"n2": [0, 1]}),
        ("n2:1@n1:0,2", "", {"n1": [0, 2], "n2": [1]}),
        ("", "n1", {"n2": [0, 1]}),
        ("", "n1:3@n2:0", {"n1": [0, 1, 2], "n2": [1]}),
    ],
)
def test_the_filter_is_deepspeed_s(include, exclude, left):
    from deepspeed.launcher.runner import parse_inclusion_exclusion

    assert chosen_slots(HOSTS, include, exclude) == left
    assert dict(parse_inclusion_exclusion(HOSTS, include, exclude)) == left


@pytest.mark.parametrize(
    ("include", "exclude", "told"),
    [
        ("n3", "", "n3 is not in the hostfile"),
        ("n2:2", "", "n2 has slots 0 to 1, not 2"),
        ("n2:x", "", "is not HOST or HOST:SLOT"),
        ("", "n1@n2", "no slot is left"),
    ],
)
def test_a_filter_that_does_not_fit(include, exclude, told):
    with pytest.raises(UserError, match=told):
        chosen_slots(HOSTS, include, exclude)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("n1 slots=x\n", "line 1: 'n1 slots=x' is not `HOST slots=N`"),
        ("# all\n\nn1 slots=2\nn1 slots=2\n", "line 4: n1 stands twice"),
        ("-oProxyCommand=x slots=1\n", "is not `HOST slots=N`"),
        ("\n", "names no host"),
    ],
)
def test_a_hostfile_that_is_wrong(tmp_path, text, told):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=told):
        read_hostfile(tmp_path / "hosts")


def test_nodes_and_slots_on_the_command_line(tmp_path):
    (tmp_path / "hosts").write_text("n1 slots=4\nn2 slots=4 # second\n")
    launch = launch_of("hosts", tmp_path, hosts={"hostfile": str(tmp_path / "hosts")})
    assert chosen(launch) == {"n1": [0, 1, 2, 3], "n2": [0, 1, 2, 3]}
    assert chosen(launch, nodes=1, slots_per_host=2) == {"n1": [0, 1]}
    with pytest.raises(UserError, match="--nodes 3"):
        chosen(launch, nodes=3)
    with pytest.raises(UserError, match="--gpus-per-node 5: n1 has 4 slots"):
        chosen(launch, slots_per_host=5)
    with pytest.raises(UserError, match="No such file"):
        chosen(launch_of("hosts", tmp_path, hosts={"hostfile": str(tmp_path / "none")}))
