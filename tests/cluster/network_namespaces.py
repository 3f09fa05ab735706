"""Hosts on one machine: network namespaces on a bridge, each with a name of its own and an sshd that takes one key.

The disk is the same for all of them, as the folder of runs is on a cluster. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

INTERFACE = "lan0"
"""Of every host; the end of a cable whose other end is at the bridge."""
_NEEDED = ("ip", "unshare", "ssh", "ssh-keygen", "pdsh", "/usr/sbin/sshd")
_SECONDS_TO_LISTEN = 10.0


class Hosts:
    """Some hosts and the operator's machine, which is the one that the tests run on."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """folder: for keys, configurations and logs."""
        self._folder = folder
        self._mark = f"ada{os.getpid()}"
        self.names = tuple(names)
        network = f"10.213.{os.getpid() % 251}"
        self._operator = f"{network}.1"
        self._addresses = {name: f"{network}.{number}" for number, name in enumerate(names, start=11)}
        self._sshds: dict[str, subprocess.Popen] = {}

    def address(self, host: str) -> str:
        return self._addresses[host]

    @property
    def ssh_config(self) -> Path:
        return self._folder / "ssh_config"

    def inside(self, host: str) -> list[str]:
        """What precedes a command that is to run on `host`."""
        return ["ip", "netns", "exec", self._namespace(host)]

    def cut_off(self, host: str) -> None:
        """Pull the host's cable."""
        _run("ip", "link", "set", self._cable(host), "down")

    def restore(self, host: str) -> None:
        _run("ip", "link", "set", self._cable(host), "up")

    def stop_sshd(self, host: str) -> None:
        """Connections that are there stay."""
        process = self._sshds.pop(host)
        process.terminate()
        process.wait(timeout=10)

    def start_sshd(self, host: str) -> None:
        config = self._folder / f"sshd-{host}"
        # A host name of its own: by that the hosts name each other.
        command = f'hostname {host} && exec /usr/sbin/sshd -D -f "{config}" -E "{config}.log"'
        self._sshds[host] = subprocess.Popen([*self.inside(host), "unshare", "--uts", "sh", "-c", command])
        deadline = time.monotonic() + _SECONDS_TO_LISTEN
        while True:
            with suppress(OSError), socket.create_connection((self.address(host), 22), timeout=1):
                return
            assert time.monotonic() < deadline, f"no sshd on {host}"
            time.sleep(0.05)

    def processes(self, host: str) -> list[psutil.Process]:
        """What runs on `host` beside sshd."""
        told = subprocess.run(
            ["ip", "netns", "pids", self._namespace(host)], capture_output=True, text=True, check=False
        )
        found = []
        for number in told.stdout.split():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(number))
                if not process.name().startswith("sshd") and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def set_up(self) -> None:
        _remove_leftovers()
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "address", "add", f"{self._operator}/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        for host in self.names:
            namespace = self._namespace(host)
            _run("ip", "netns", "add", namespace)
            _run(
                *("ip", "link", "add", self._cable(host), "type", "veth"),
                *("peer", "name", INTERFACE, "netns", namespace),
            )
            _run("ip", "link", "set", self._cable(host), "master", self._bridge, "up")
            _run("ip", "-n", namespace, "address", "add", f"{self.address(host)}/24", "dev", INTERFACE)
            _run("ip", "-n", namespace, "link", "set", INTERFACE, "up")
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
        self._write_configurations()
        for host in self.names:
            self.start_sshd(host)

    def take_down(self) -> None:
        """All of it, and whatever still runs there."""
        for host in self.names:
            _end_namespace(self._namespace(host))
        for process in self._sshds.values():
            process.wait(timeout=10)
        for host in self.names:
            subprocess.run(["ip", "link", "delete", self._cable(host)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)

    @property
    def _bridge(self) -> str:
        return f"{self._mark}b"

    def _cable(self, host: str) -> str:
        return f"{self._mark}c{self.names.index(host)}"

    def _namespace(self, host: str) -> str:
        return f"{self._mark}-{host}"

    def _write_configurations(self) -> None:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd does not start without it
        key = self._folder / "key"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        known, config = [], []
        for host in self.names:
            host_key = self._folder / f"host-key-{host}"
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key))
            kind, public = host_key.with_suffix(".pub").read_text().split()[:2]
            known.append(f"{self.address(host)} {kind} {public}\n")
            config.append(f"Host {host}\n    HostName {self.address(host)}\n")
            lines = (
                f"ListenAddress {self.address(host)}",
                f"HostKey {host_key}",
                f"AuthorizedKeysFile {key}.pub",
                f"PidFile {self._folder / f'sshd-{host}.pid'}",
                *("PermitRootLogin prohibit-password", "StrictModes no", "UsePAM no", "PasswordAuthentication no"),
                "AcceptEnv ADAPONDER_FORWARD_*",
            )
            (self._folder / f"sshd-{host}").write_text("\n".join(lines) + "\n")
        (self._folder / "known_hosts").write_text("".join(known))
        everywhere = (
            *("User root", "IdentitiesOnly yes", "StrictHostKeyChecking yes"),
            f"IdentityFile {key}",
            f"UserKnownHostsFile {self._folder / 'known_hosts'}",
        )
        self.ssh_config.write_text("".join(config) + "Host *\n" + "".join(f"    {line}\n" for line in everywhere))


@contextmanager
def hosts_on_this_machine(folder: Path, names: Sequence[str]) -> Iterator[Hosts]:
    """Hosts of these names for as long as the `with` lasts; skips the test where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if missing := [program for program in _NEEDED if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    hosts = Hosts(folder, names)
    try:
        try:
            hosts.set_up()
        except subprocess.CalledProcessError as error:
            if "Operation not permitted" not in error.stderr:
                raise
            pytest.skip(f"no network namespaces here: {' '.join(error.cmd)}: {error.stderr.strip()}")
        yield hosts
    finally:
        hosts.take_down()


def _remove_leftovers() -> None:
    """Of test runs that were killed: what is named after a process that is no more."""
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout.splitlines()
    for namespace in (line.split()[0] for line in found):
        number = namespace.partition("-")[0].removeprefix("ada")
        if namespace.startswith("ada") and number.isdecimal() and not psutil.pid_exists(int(number)):
            _end_namespace(namespace)
            subprocess.run(["ip", "link", "delete", f"ada{number}b"], capture_output=True, check=False)


def _end_namespace(namespace: str) -> None:
    told = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for number in told.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)
