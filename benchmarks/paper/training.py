"""Train the members of a study by the pipeline's own command, each once, as many at a time as there are jobs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import CONFIG_NAME

from benchmarks.paper.progress import progress
from benchmarks.paper.study import Study, Training
from pipeline.checkpoint import STATE_FILE, checkpoint_name, complete_checkpoints, find_checkpoint, load_model
from pipeline.checkpoint_marker import measured, write_marker
from pipeline.console import console
from pipeline.durable import PARTIAL_SUFFIX, write_json, write_text
from pipeline.errors import UserError, WorldError
from pipeline.network_config import model_config
from pipeline.run_folder import RunFolder

_POLL_SECONDS = 0.3


def tokenize(study: Study) -> None:
    """Make the shards that all members read; what stands is not made again."""
    recipe = study.root / "recipes" / "data.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(json.dumps(study.data_recipe.resolved()), encoding="utf-8")
    code = subprocess.run(command("tokenize", recipe, study.root), check=False).returncode
    if code:
        raise WorldError(f"tokenize {recipe} failed with exit code {code}: what it said stands above")


def train(study: Study, jobs: int, threads: int) -> None:
    """Train what is not trained yet, a training after those that it needs.

    Raises `UserError` for a run that was begun under another recipe, `WorldError` at the end naming the runs that
    failed, with their logs; the others are finished by then.
    """
    waiting = {training.name: training for training in study.trainings if not is_trained(study, training)}
    total = len(study.trainings)
    if not waiting:
        console.print(f"train: all {total} trainings stand, nothing to do")
        return
    for training in waiting.values():
        require_own(study, training)  # told before the first hour, not after it
    running: dict[str, Running] = {}
    failed: dict[str, Path] = {}
    with progress("train", total, total - len(waiting)) as advance:
        try:
            while waiting or running:
                for name in [name for name, each in waiting.items() if set(each.needs) & set(failed)]:
                    failed[name] = failed[next(need for need in waiting[name].needs if need in failed)]
                    del waiting[name]
                ready = [each for each in waiting.values() if not set(each.needs) & (waiting.keys() | running.keys())]
                for training in ready[: jobs - len(running)]:
                    del waiting[training.name]
                    running[training.name] = start(study, training, threads)
                for name, each in list(running.items()):
                    code = each.process.poll()
                    if code is None:
                        continue
                    del running[name]
                    if code:
                        failed[name] = each.log
                    advance(f"{name}: {each.seconds:.0f} s")
                time.sleep(_POLL_SECONDS)
        finally:
            for each in running.values():
                each.process.terminate()  # the training saves, and the same command goes on from there
                each.process.wait()
    if failed:
        told = "; ".join(f"{name} ({log})" for name, log in failed.items())
        raise WorldError(f"{len(failed)} of {total} trainings failed: {told}; the same command tries them again")


@dataclass(frozen=True)
class Running:
    """A training at work."""

    process: subprocess.Popen
    log: Path
    began: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def start(study: Study, training: Training, threads: int) -> Running:
    """Start a training whose needs are there."""
    recipe = study.write_recipe(training)
    if training.member.branch_of:
        take_branch(study, training)
    if training.member.weights_of:
        export_weights(study, training.needs[-1])
    log = study.root / "logs" / f"{training.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command("train", recipe, study.root),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    return Running(process, log, time.monotonic())


def is_trained(study: Study, training: Training) -> bool:
    """Whether the run has taken its last step under the recipe that it would have today."""
    recipe = study.recipe_of(training)
    saved = complete_checkpoints(RunFolder(study.root, recipe).checkpoints)
    return bool(saved) and saved[-1].step == recipe.train.steps and saved[-1].state.recipe_hash == recipe.hash()


def require_own(study: Study, training: Training) -> None:
    """`UserError` where the run was begun under another recipe than it has now: it would go on as half of each."""
    recipe = study.recipe_of(training)
    folder = RunFolder(study.root, recipe)
    saved = complete_checkpoints(folder.checkpoints)
    if saved and saved[-1].state.recipe_hash != recipe.hash():
        raise UserError(f"{folder.path} was trained under another recipe: remove it, or take another --runs")


def take_branch(study: Study, training: Training) -> None:
    """Give the run the checkpoint in which the first phase of the training that it branches from ends.

    As if the run had taken those steps itself: with its own recipe and its own network's settings. Files of states are
    linked, since none is ever written again. Nothing is done where the run has checkpoints.
    """
    recipe, trunk = study.recipe_of(training), study.recipe_of(study.trunk(training))
    folder = RunFolder(study.root, recipe).checkpoints
    if complete_checkpoints(folder):
        return
    taken = find_checkpoint(RunFolder(study.root, trunk).checkpoints, checkpoint_name(trunk.train.phases[0].steps))
    partial = folder / f"{taken.name}{PARTIAL_SUFFIX}"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(taken.path, partial, copy_function=os.link)
    state = taken.state.model_copy(update={"recipe": recipe.resolved(), "recipe_hash": recipe.hash()})
    write_text(partial / STATE_FILE, state.model_dump_json(indent=2) + "\n")
    own, other = model_config(recipe).to_dict(), model_config(trunk).to_dict()
    config = json.loads((partial / CONFIG_NAME).read_text(encoding="utf-8"))
    write_json(partial / CONFIG_NAME, config | {name: own[name] for name in own if own[name] != other.get(name)})
    rewritten = {name: measured(partial / name) for name in (STATE_FILE, CONFIG_NAME)}
    write_marker(partial, {**taken.marker.files, **rewritten})
    partial.rename(folder / taken.name)


def export_weights(study: Study, run: str) -> None:
    """Write a run's last weights as a folder that `model.backbone` takes; nothing where they stand."""
    folder = study.weights(run)
    if folder.is_dir():
        return
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    load_model(find_checkpoint(study.root / run / "checkpoints")).save_pretrained(partial)
    partial.rename(folder)


def command(stage: str, recipe: Path, root: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline", stage, str(recipe), "--runs", str(root)]
