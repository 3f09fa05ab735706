"""The thread on rank 0 that feeds MLflow from metrics.jsonl, and the nodes' samples, while training runs.

Training never waits for it and never hears of its troubles: a server that is away is told once on the console and
once in events.jsonl, tried again with growing pauses, and gets everything it missed when it is back. What it has not
got when training ends stays in metrics.jsonl; the next stage of the run sends it.
"""

from __future__ import annotations

import threading
import time

from rich.markup import escape

from pipeline.console import console
from pipeline.errors import WorldError
from pipeline.events import append_event
from pipeline.run_folder import RunFolder
from pipeline.tracking.failures import failure_of
from pipeline.tracking.identity import EndStatus, note_status, only_writer
from pipeline.tracking.server import reason
from pipeline.tracking.training_run import TrainingRun

POLL_SECONDS = 3.0
LONGEST_PAUSE_SECONDS = 300.0
LOCK_PAUSE_SECONDS = 0.5
ENDED_TAG = "adaponder.ended.attempt-"
"""With the attempt's number: why it was ended before its last step."""


class Tracker:
    """Follows one attempt of the training; rank 0 only."""

    def __init__(self, folder: RunFolder, manifest_hash: str, attempt: int) -> None:
        self._folder = folder
        self._attempt = attempt
        self._run = TrainingRun(folder, manifest_hash)
        self._run_id: str | None = None
        self._away = False
        self._complete = False
        self._recipe_logged = False
        self._wanted: EndStatus | None = None
        self._why: str | None = None
        self._ending = threading.Event()
        self._deadline = 0.0
        # A daemon: a server that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._follow, name="mlflow-tracker", daemon=True)

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None until the server has answered for the first time."""
        return self._run_id

    def start(self) -> None:
        """Begin to follow metrics.jsonl; returns at once."""
        self._thread.start()

    def finish(self, status: EndStatus, wait_seconds: float = 30.0, why: str | None = None) -> None:
        """Send what is left, set the run's status and stop; gives up after `wait_seconds` and says so.

        why: goes into a tag of this attempt.
        """
        self._why = why
        self._wanted = status
        self._deadline = time.monotonic() + wait_seconds
        self._ending.set()
        self._thread.join(wait_seconds + 1.0)  # it stops trying at the deadline; a moment more lets it go
        if not self._complete:
            message = "MLflow has not got all metrics yet: they are in metrics.jsonl, the run's next stage sends them"
            console.print(f"[yellow]{message}[/yellow]")
            append_event(self._folder, "tracking_incomplete", message=message)
        try:
            note_status(self._folder, status)
        except (OSError, WorldError) as error:
            console.print(f"[yellow]{escape(reason(error))}[/yellow]")

    def _follow(self) -> None:
        while True:
            with only_writer(self._folder) as lock:
                # On a file system without locks training goes first: later stages wait until it has noted its end.
                if lock != "busy":
                    self._serve()
                    return
            # A stage is just sending what an earlier attempt left.
            if self._ending.is_set() and time.monotonic() >= self._deadline:
                return
            time.sleep(LOCK_PAUSE_SECONDS)

    def _serve(self) -> None:
        pause = POLL_SECONDS
        while True:
            ending = self._ending.is_set()  # read before sending: what training wrote before finish() is then sent
            try:
                self._send(ending)
            except Exception as error:  # whatever it is, training goes on; `failure_of` tells whose it is
                self._failed(error)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                self._worked()
                pause = POLL_SECONDS
                if ending:
                    self._complete = True
                    return
            if ending:
                if time.monotonic() >= self._deadline:
                    return
                time.sleep(min(1.0, max(0.0, self._deadline - time.monotonic())))
            else:
                self._ending.wait(pause)

    def _send(self, ending: bool) -> None:
        if self._run_id is None:
            self._run_id = self._run.open(self._attempt)
        self._run.send_new_metrics()
        self._run.send_system_metrics()
        if ending and self._wanted is not None:
            if self._why:
                self._run.tag(f"{ENDED_TAG}{self._attempt}", self._why)
            self._run.end(self._wanted)
        if not self._recipe_logged:  # last: an artifact store without credentials must not hold up metrics and status
            self._run.log_recipe(self._attempt)
            self._recipe_logged = True

    def _failed(self, error: Exception) -> None:
        self._run.forget_progress()
        if not self._away:
            self._away = True
            failure = failure_of(error, "metrics", self._folder.root)
            console.print(
                f"[yellow]{escape(failure.message)}: training goes on, they are kept in metrics.jsonl and sent when it "
                "can be done[/yellow]"
            )
            append_event(self._folder, "tracking_away", message=failure.message, **failure.fields())

    def _worked(self) -> None:
        if self._away:
            self._away = False
            console.print("MLflow is back: all metrics are sent")
            append_event(self._folder, "tracking_back", run_id=self._run_id)
