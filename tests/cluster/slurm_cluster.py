"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd of its own, in a temporary folder.

Both nodes are this machine, told apart by their names and ports; nothing of a Slurm that is installed is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from launch.local import die_with_parent
from tests.cluster.conftest import SYSTEM_PATH

_Found = TypeVar("_Found")

NODES = ("n1", "n2")
SLURMD_TIMEOUT_SECONDS = 20
"""Until a node that is silent counts as down and its jobs end. Slurm's default is 300, as long as all tests may take;
less than this, and a node whose every core is busy is taken for one that is gone."""
KILL_WAIT_SECONDS = 30
"""From SIGTERM to SIGKILL, Slurm's default: ranks must save in it."""

_CONF = """
ClusterName=adaponder-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=86400
KillWait={kill_wait}
SlurmdTimeout={slurmd_timeout}
NodeName=DEFAULT CPUs={cpus} RealMemory=1000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first_port}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second_port}
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Used in a `with`: both nodes are idle when it is entered, and no process of it is left when it is left."""

    def __init__(self) -> None:
        # A socket's path may have 107 characters, so not below pytest's own folder.
        self.folder = Path(tempfile.mkdtemp(prefix="adaponder-slurm-", dir="/tmp"))
        self.temporary = self.folder / "temporary"
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def run(self, *command: str) -> str:
        """What one of Slurm's programs prints; AssertionError with what it says where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job, by field."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def jobs(self) -> list[dict[str, str]]:
        """The same of all jobs that there were, those of an array one by one."""
        lines = self.run("scontrol", "--oneliner", "show", "job").splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines if "JobId=" in line]

    def wait_for_job(self, number: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """The job once it is in one of `states`; AssertionError with Slurm's logs if it does not get there."""
        return self._until(
            lambda: job if (job := self.job(number))["JobState"] in states else None,
            f"job {number} is not {' or '.join(states)}",
            seconds,
        )

    def kill_node(self, name: str) -> None:
        """What a host does that loses its power: slurmd, the steps' managers and their processes end at once."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()
        deadline = time.monotonic() + 10
        # Again, until nothing is left: a process may have been born meanwhile.
        while (found := self._processes(name)) and time.monotonic() < deadline:
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        assert not found, f"processes of {name} do not end: {found}"

    def start_node(self, name: str) -> None:
        """Start slurmd, if it does not run, and wait until both nodes are idle."""
        if name not in self._daemons:
            self._daemon(name, "slurmd", "-D", "-N", name)
        self.wait_for_nodes("idle")

    def wait_for_nodes(self, state: str, seconds: float = 60) -> None:
        """Wait until both nodes are in `state`."""
        shown = ("sinfo", "--noheader", "--Node", "--format=%T")
        self._until(lambda: set(self.run(*shown).split()) == {state} or None, f"the nodes are not {state}", seconds)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            parts.append("\n".join([f"--- {path.name}", *lines[-20:]]))
        return "\n" + "\n".join(parts)

    def _start(self) -> None:
        for name in ("state", "spool-n1", "spool-n2", self.temporary.name):
            (self.folder / name).mkdir()
        controller_port, first_port, second_port = _free_ports(3)
        conf = _CONF.format(
            folder=self.folder,
            host=socket.gethostname(),
            controller_port=controller_port,
            first_port=first_port,
            second_port=second_port,
            cpus=os.cpu_count(),
            kill_wait=KILL_WAIT_SECONDS,
            slurmd_timeout=SLURMD_TIMEOUT_SECONDS,
        )
        (self.folder / "slurm.conf").write_text(conf, encoding="utf-8")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        paths = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
        options = [f"--{option}={self.folder / name}" for option, name in paths.items()]
        # --force: it dislikes root, and folders below /tmp.
        self._daemon("munged", "munged", "--foreground", "--force", *options, f"--seed-file={self.folder / 'seed'}")
        self._until(lambda: (self.folder / "munge.socket").exists() or None, "munged does not listen", 30)
        self._daemon("slurmctld", "slurmctld", "-D")
        for name in NODES:
            self._daemon(name, "slurmd", "-D", "-N", name)
        self._until(self._controller_answers, "slurmctld does not answer", 30)
        self.wait_for_nodes("idle")

    def _controller_answers(self) -> bool | None:
        done = subprocess.run(
            ["scontrol", "ping"], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return True if "is UP" in done.stdout else None

    def _daemon(self, name: str, *command: str) -> None:
        program = shutil.which(command[0], path=SYSTEM_PATH)
        with open(self.folder / f"{name}.output.log", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program or command[0], *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=die_with_parent,
            )

    def _until(self, look: Callable[[], _Found | None], problem: str, seconds: float) -> _Found:
        deadline = time.monotonic() + seconds
        while (found := look()) is None:
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            assert not dead, f"{', '.join(dead)} ended: {self.logs()}"
            assert time.monotonic() < deadline, f"{problem} after {seconds:.0f} s: {self.logs()}"
            time.sleep(0.2)
        return found

    def _stop(self) -> None:
        """End everything, also where a daemon does not answer, and remove the folder."""
        deadline = time.monotonic() + 30
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        while (found := self._processes()) and time.monotonic() < deadline:
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            for daemon in self._daemons.values():
                daemon.poll()
            time.sleep(0.05)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not found, f"processes are left: {found}"

    def _processes(self, node: str | None = None) -> list[int]:
        """Processes that daemons of this cluster have started, and the daemons: all, or those of one node."""
        variables = {f"SLURM_CONF={self.environment['SLURM_CONF']}", *([f"SLURMD_NODENAME={node}"] if node else [])}
        # A step's manager writes its title over its environment, but writes into its node's log.
        logs = {str(self.folder / f"slurmd-{name}.log") for name in ([node] if node else NODES)}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if variables <= set(environment) or any(os.readlink(file) in logs for file in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
        return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
