"""Judging as jobs of a cluster: Slurm batch jobs, or Jobs of Kubernetes. They go on when their watcher ends.

A job is known by a name that no other try has: whoever takes over asks for it by that name, also where the watcher
before was killed between asking for the job and hearing its number.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from launch.targets import kubernetes, slurm
from launch.targets.launching import Launch, job_name
from pipeline.durable import write_text
from pipeline.errors import WorldError
from pipeline.watching.attempt import Ended, Running, Try, last_error

_SECONDS_TO_ANSWER = 60.0


class SlurmPlace:
    """sbatch, and squeue by the job's name."""

    at_once = 1_000_000  # Slurm has its own limits

    def __init__(self, launch: Launch, recipe_file: Path, look_seconds: float) -> None:
        self._launch, self._recipe_file, self._look_seconds = launch, recipe_file, look_seconds

    def log(self, attempt: Try) -> Path:
        return self._log(attempt.name)

    def begin(self, attempt: Try) -> Running:
        folder = self._launch.folder
        command = self._launch.evaluation(attempt.checkpoint, attempt.suites, str(folder.root), str(self._recipe_file))
        path = folder.evaluation_jobs / attempt.checkpoint / f"{attempt.name}.sbatch"
        write_text(path, slurm.evaluation(self._launch, attempt.name, command))
        folder.logs.mkdir(parents=True, exist_ok=True)
        # Output goes to where sbatch is called: no path stands in an #SBATCH line.
        _answer(["sbatch", "--parsable", str(path)], folder.logs)
        return self._running(attempt.name)

    def again(self, name: str) -> Running | None:
        return self._running(name, taken_over=True)

    def _running(self, name: str, taken_over: bool = False) -> Running:
        return _Queued(name, self._is_there, self._log, self._look_seconds, taken_over)

    def _is_there(self, name: str) -> bool:
        queue = _answer(["squeue", "--noheader", f"--name={job_name(self._launch, name)}", "--format=%i"])
        return bool(queue.strip())

    def _log(self, name: str) -> Path:
        """The newest of those that end in the number of a job."""
        found = sorted(self._launch.folder.logs.glob(f"slurm-{name}-*.out"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else self._launch.folder.logs / f"slurm-{name}-JOB.out"


class KubernetesPlace:
    """kubectl apply, and the Job's conditions."""

    at_once = 1_000_000

    def __init__(self, launch: Launch, recipe_file: Path, look_seconds: float) -> None:
        self._launch, self._recipe_file, self._look_seconds = launch, recipe_file, look_seconds
        self._kubectl = ["kubectl", "--namespace", launch.cluster.kubernetes.namespace]

    def log(self, attempt: Try) -> Path:
        return self._log(attempt.name)

    def begin(self, attempt: Try) -> Running:
        folder, inside = self._launch.folder, self._launch.cluster.kubernetes.runs
        recipe = f"{inside}/{self._recipe_file.relative_to(folder.root)}"
        command = self._launch.evaluation(attempt.checkpoint, attempt.suites, inside, recipe)
        path = folder.evaluation_jobs / attempt.checkpoint / f"{attempt.name}.yaml"
        write_text(path, kubernetes.evaluation(self._launch, attempt.name, command))
        _answer([*self._kubectl, "apply", "-f", str(path)])
        return self._running(attempt.name)

    def again(self, name: str) -> Running | None:
        return self._running(name, taken_over=True)

    def _running(self, name: str, taken_over: bool = False) -> Running:
        return _Queued(name, self._goes_on, self._log, self._look_seconds, taken_over)

    def _goes_on(self, name: str) -> bool:
        job = f"job/{kubernetes.evaluation_name(self._launch, name)}"
        conditions = "jsonpath={.metadata.name} {range .status.conditions[?(@.status=='True')]}{.type} {end}"
        words = _answer([*self._kubectl, "get", job, "--ignore-not-found", "-o", conditions]).split()
        if not words or "Complete" in words:
            return False
        if "Failed" in words:
            self._keep_log(job, name)
            return False
        return True

    def _keep_log(self, job: str, name: str) -> None:
        """What the pods said, while there are pods."""
        try:
            write_text(self._log(name), _answer([*self._kubectl, "logs", job, "--tail=200"]))
        except WorldError as error:
            write_text(self._log(name), f"adaponder: {error}\n")

    def _log(self, name: str) -> Path:
        return self._launch.folder.logs / f"{name}.log"


class _Queued:
    def __init__(
        self,
        name: str,
        goes_on: Callable[[str], bool],
        log: Callable[[str], Path],
        look_seconds: float,
        taken_over: bool,
    ) -> None:
        self._name, self._goes_on, self._log = name, goes_on, log
        self._taken_over, self.look_seconds = taken_over, look_seconds

    def ended(self) -> Ended | None:
        try:
            if self._goes_on(self._name):
                return None
        except WorldError:  # a controller that is away for a while says nothing of the job
            return None
        log = self._log(self._name)
        # Without a word, the watcher before may have been killed as it was about to ask for the job.
        never_was = self._taken_over and not log.exists()
        return Ended(last_error(log) or f"the job {self._name} ended and left no log {log}", stopped=never_was)

    def leave(self) -> None:
        pass


def _answer(command: list[str], folder: Path | None = None) -> str:
    """What the cluster says; `WorldError` where it does not."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS_TO_ANSWER,
            start_new_session=True,  # Ctrl-C ends the watcher, not what it is just asking for
        )
    except OSError as error:
        raise WorldError(f"{command[0]}: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise WorldError(f"{command[0]} does not answer for {_SECONDS_TO_ANSWER:.0f} s") from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise WorldError(f"{command[0]}: {told[-1] if told else f'exit code {done.returncode}'}")
    return done.stdout
