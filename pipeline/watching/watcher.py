"""The watcher's loop: look for checkpoints, claim what is owed, have it judged, see how that ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint import checkpoint_name, complete_folders
from pipeline.console import print_between
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.watching.attempt import Ended, Place, Running, Try
from pipeline.watching.claims import HEARTBEAT_SECONDS, STALE_SECONDS, Claim, claim, given_back
from pipeline.watching.job import Job, State, create_job, read_job, write_job
from pipeline.watching.kept import Kept, Mark, mark_of
from pipeline.watching.owed import Ledger, Owed, untold, waiting
from pipeline.watching.stop_flag import StopFlag
from pipeline.watching.telling import tell_begun, tell_done, tell_end, tell_failure, tell_given_up

_LONGEST_PAUSE = 600.0
_GONE = "the checkpoint was removed before it was judged"


@dataclass
class _InHand:
    """A checkpoint that this watcher has claimed and that is being judged."""

    claim: Claim
    attempt: Try
    running: Running
    began: float
    look_at: float = 0.0


class Watcher:
    """Judges the checkpoints of a run until the last is judged; several may work side by side."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        place: Place,
        *,
        once: bool = False,
        retry: bool = False,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        """once: judge what is there and end. retry: give what was given up all its tries anew."""
        self._recipe, self._folder, self._place = recipe, folder, place
        self._once, self._retry = once, retry
        self._heartbeat_seconds, self._stale_seconds = heartbeat_seconds, stale_seconds
        self._tries, self._poll_seconds = (recipe.evaluate.jobs.tries, recipe.evaluate.jobs.poll_seconds)
        self._ledger = Ledger(recipe, folder)
        self._in_hand: dict[str, _InHand] = {}
        self._kept = Kept()
        self._settled: dict[str, Mark] = {}
        """The marker (`mark_of`) of each checkpoint with which nothing is left to do."""
        self._all_saved = False
        self._try_at: dict[str, float] = {}
        """When a checkpoint on which a try failed gets its next one."""
        self._forgiven: set[str] = set()
        self._tell_again: dict[str, tuple[int, float]] = {}
        """How often MLflow did not take a checkpoint's results, and when to try again."""
        self._gone: set[str] = set()
        """Removed checkpoints of which all is written down."""
        self._told: set[str] = set()

    def watch(self, stop: StopFlag) -> None:
        """Until all is judged. Raises `Stopped` or `KeyboardInterrupt` when asked to end, `WorldError` naming what was
        given up."""
        try:
            next_look = 0.0
            while not stop.is_set:
                ended = self._see_ends()
                if ended or time.monotonic() >= next_look:
                    open_ends = self._begin_what_is_owed(stop)
                    next_look = time.monotonic() + self._poll_seconds
                    if not open_ends and not self._in_hand:
                        break
                soonest = min([next_look, *(one.look_at for one in self._in_hand.values())])
                stop.wait(max(0.05, soonest - time.monotonic()))
        finally:
            for name in list(self._in_hand):
                self._leave(name)
            self._kept.let_all_go()
        stop.raise_if_set()
        tell_end(self._folder, self._stale_seconds)

    def _begin_what_is_owed(self, stop: StopFlag) -> bool:
        """Begin what may be begun; whether there is, or will be, more to do."""
        paths = complete_folders(self._folder.checkpoints)
        if not self._all_saved and checkpoint_name(self._recipe.train.steps) in [path.name for path in paths]:
            self._all_saved = True
            self._tell_again.clear()  # what MLflow did not take so far gets its last chances
        open_ends = not self._once and not self._all_saved
        for path in paths:
            if stop.is_set:
                return True
            if path.name in self._in_hand:
                open_ends = True
                continue
            mark = mark_of(path)
            if mark is None or self._settled.get(path.name) == mark:
                continue
            self._kept.keep(path, mark)
            open_ends |= self._begin(self._ledger.look(path), mark)
        open_ends |= self._look_at_removed({path.name for path in paths})
        return open_ends

    def _begin(self, owed: Owed, mark: Mark) -> bool:
        """Claim the checkpoint and begin a try; whether something is left to do."""
        folder = self._folder.evaluation_jobs / owed.name
        create_job(folder, owed.new_job())
        job = read_job(folder)
        forgive = self._retry and owed.name not in self._forgiven
        forgive &= job is not None and any(one.state is State.FAILED for one in job.suites.values())
        if job is not None and not forgive and owed.settled_in(job):
            self._settle(owed.name, mark)
            return False
        if len(self._in_hand) >= self._place.at_once or time.monotonic() < self._try_at.get(owed.name, 0.0):
            return True
        if self._not_yet(owed, job):
            return not self._once
        mine = claim(folder, self._heartbeat_seconds, self._stale_seconds)
        if mine is None:
            self._tell_once(f"watch: {owed.name} is in the hands of another watcher")
            return not self._once
        with given_back(mine) as kept:
            # Another one may have been at it until a moment ago.
            owed = self._ledger.look(owed.path)
            job = self._ledger.bring_up_to_date(owed, read_job(folder), forgive=forgive)
            self._forgiven.add(owed.name)
            if self._take_over(mine, job) or self._try(mine, folder, job):
                kept.pop_all()
                return True
            write_job(folder, job)
        if owed.settled_in(job) or self._given_up_telling(owed.name):
            self._settle(owed.name, mark)
            return False
        return True

    def _not_yet(self, owed: Owed, job: Job | None) -> bool:
        """Whether all that is left is to tell MLflow, and that later."""
        if job is None:
            return False
        job = self._ledger.bring_up_to_date(owed, job)
        return (
            bool(untold(job)) and not waiting(job) and time.monotonic() < self._tell_again.get(owed.name, (0, 0.0))[1]
        )

    def _take_over(self, mine: Claim, job: Job) -> bool:
        """Go on with the job that an earlier watcher asked a cluster for."""
        if job.submitted is None:
            return False
        running = self._place.again(job.submitted)
        if running is None:
            return False
        number = int(job.submitted.rpartition("-")[2])
        for suite in job.submitted_suites:
            if suite in waiting(job):
                job.suites[suite].state = State.RUNNING
        write_job(self._folder.evaluation_jobs / job.checkpoint, job)
        self._in_hand[job.checkpoint] = _InHand(
            mine, Try(job.checkpoint, job.submitted_suites, number), running, time.monotonic()
        )
        return True

    def _try(self, mine: Claim, folder: Path, job: Job) -> bool:
        suites = [*untold(job), *waiting(job)]
        if not suites or (not waiting(job) and self._given_up_telling(job.checkpoint)):
            return False
        attempt = Try(job.checkpoint, suites, mine.number)
        for suite in suites:
            job.suites[suite].state = State.RUNNING
        # Noted before it is asked for: who takes over looks for it by this name.
        job.submitted, job.submitted_suites = attempt.name, suites
        write_job(folder, job)
        try:
            running = self._place.begin(attempt)
        except WorldError as error:
            self._note_end(folder, job, attempt, Ended(str(error)), 0.0)
            mine.release()
            return True  # the claim is given back, and there is more to do
        tell_begun(self._folder, job, attempt, self._tries)
        self._in_hand[job.checkpoint] = _InHand(mine, attempt, running, time.monotonic())
        return True

    def _see_ends(self) -> bool:
        """Deal with the tries that have ended; whether there were any."""
        some = False
        for name, one in list(self._in_hand.items()):
            if one.claim.lost.is_set():
                print_between(f"[yellow]watch: {name} was taken over by another watcher[/yellow]")
                self._leave(name)
                continue
            if time.monotonic() < one.look_at:
                continue
            one.look_at = time.monotonic() + one.running.look_seconds
            ended = one.running.ended()
            if ended is None:
                continue
            some = True
            del self._in_hand[name]
            folder = self._folder.evaluation_jobs / name
            if one.claim.still_held():
                job = read_job(folder)
                assert job is not None, f"{folder} was removed"
                self._note_end(folder, job, one.attempt, ended, time.monotonic() - one.began)
            one.claim.release()
        return some

    def _note_end(self, folder: Path, job: Job, attempt: Try, ended: Ended, seconds: float) -> None:
        """Write down and tell what came of a try; the results themselves say whether it was made."""
        path = self._folder.checkpoints / job.checkpoint
        owed = self._ledger.recall(job) if mark_of(path) is None else self._ledger.look(path)
        log = self._place.log(attempt)
        job = self._ledger.bring_up_to_date(owed, job.model_copy(update={"submitted": None, "submitted_suites": []}))
        job.log = str(log)
        # Suites are judged in turn: the first that has no result is the one that failed.
        missing = [suite for suite in attempt.suites if suite in waiting(job)]
        made = [suite for suite in attempt.suites if suite not in missing]
        if untold(job):
            times = self._tell_again.get(job.checkpoint, (0, 0.0))[0] + 1
            self._tell_again[job.checkpoint] = (times, self._after(times))
        if missing:
            self._try_at[job.checkpoint] = self._after(job.suites[missing[0]].tries)
        if missing and not ended.stopped:
            job.suites[missing[0]].tries += 1
            job.suites[missing[0]].error = ended.error
            job = self._ledger.bring_up_to_date(owed, job)
        write_job(folder, job)
        if made:
            tell_done(self._folder, job, made, seconds)
        if missing and not ended.stopped:
            tell_failure(self._folder, job, missing[0], log, self._tries)

    def _look_at_removed(self, present: set[str]) -> bool:
        """What was owed to checkpoints that are no more; whether a job still judges one of them."""
        open_ends = False
        for folder in sorted(self._folder.evaluation_jobs.glob("step-*")):
            if folder.name in present or folder.name in self._in_hand or folder.name in self._gone:
                continue
            job = read_job(folder)
            if job is None:
                continue
            if not any(one.state in (State.WAITING, State.RUNNING) for one in job.suites.values()):
                self._gone.add(folder.name)
                continue
            mine = claim(folder, self._heartbeat_seconds, self._stale_seconds)
            if mine is None:
                open_ends |= not self._once
                continue
            with given_back(mine) as kept:
                job = read_job(folder) or job
                if self._take_over(mine, job):
                    kept.pop_all()
                    open_ends = True
                    continue
                self._give_up_removed(folder, self._ledger.bring_up_to_date(self._ledger.recall(job), job))
        return open_ends

    def _give_up_removed(self, folder: Path, job: Job) -> None:
        pending = waiting(job)
        for suite in pending:
            job.suites[suite].state, job.suites[suite].error = State.FAILED, _GONE
        write_job(folder, job)
        self._gone.add(folder.name)
        for suite in pending:
            tell_given_up(self._folder, job, suite)

    def _settle(self, name: str, mark: Mark) -> None:
        self._settled[name] = mark
        self._kept.let_go(name)

    def _given_up_telling(self, name: str) -> bool:
        return self._all_saved and self._tell_again.get(name, (0, 0.0))[0] >= self._tries

    def _after(self, times: int) -> float:
        """When to try again what has failed so often."""
        return time.monotonic() + min(_LONGEST_PAUSE, self._poll_seconds * 2**times)

    def _leave(self, name: str) -> None:
        one = self._in_hand.pop(name)
        one.running.leave()
        one.claim.release()

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            print_between(message)
