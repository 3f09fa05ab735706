"""What every target works from: a recipe, where its run lies, and where the files of the launch go.

A target is a module of this package with `check(launch, submit)`, which raises `UserError` for what cannot work,
`ranks(launch)`, how many the training has, and `files(launch)`, the text of each file by its name. Files of all
stages are always written; the stage only decides what `start.sh` starts, so that a launch of one stage never takes
the scripts away from another one that is running.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipe import DataSection, Recipe
from pipeline.recipe_cluster import ClusterSection
from pipeline.run_folder import RunFolder

STAGES = ("tokenize", "train", "evaluate", "release")
ALL = "all"
START = "start.sh"
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Launch:
    """One call of `adaponder launch`."""

    target: str
    recipe: Recipe
    folder: RunFolder
    stage: str = ALL

    @property
    def cluster(self) -> ClusterSection:
        return self.recipe.cluster

    @property
    def path(self) -> Path:
        """Where the files lie: runs/NAME/launch/TARGET."""
        return self.folder.path / "launch" / self.target

    @property
    def recipe_file(self) -> Path:
        return self.path / RECIPE

    @property
    def python(self) -> str:
        """The interpreter on the nodes."""
        in_container = self.target == "kubernetes" or (self.target == "slurm" and self.cluster.container.kind != "none")
        return self.cluster.python or ("python3" if in_container else sys.executable)

    @property
    def last_checkpoint(self) -> str:
        """What evaluation and release take: nothing else is a finished training."""
        return f"step-{self.recipe.train.steps:08d}"

    @property
    def tokenizes(self) -> bool:
        """Whether the run makes its shards; else they were made before."""
        return self.recipe.data.shards == DataSection().shards

    def arguments(self, stage: str, runs: str = "", recipe_file: str = "") -> list[str]:
        """The command line of a stage without its options, `python -m pipeline ...`; of several ranks torchrun's."""
        if stage == "evaluate":
            return self._judging([*self.run_arguments(runs, recipe_file), "--checkpoint", self.last_checkpoint])
        given = [stage, *self.run_arguments(runs, recipe_file)]
        if stage == "release":
            given += ["--checkpoint", self.last_checkpoint]
        if stage == "train" and self.cluster.preflight.before_training:
            given.append("--preflight")
        return [self.python, "-m", "pipeline", *given]

    def run_arguments(self, runs: str = "", recipe_file: str = "") -> list[str]:
        """The recipe and the folder of runs, as all that belongs to the run takes them."""
        return [recipe_file or str(self.recipe_file), "--runs", runs or str(self.folder.root)]

    def evaluation(self, checkpoint: str, suites: list[str], runs: str, recipe_file: str) -> list[str]:
        """The command line of one judgement."""
        chosen = [word for suite in suites for word in ("--suite", suite)]
        return self._judging([recipe_file, "--runs", runs, "--checkpoint", checkpoint, *chosen])

    def _judging(self, given: list[str]) -> list[str]:
        """`python -m pipeline evaluate ...`, or its ranks, which take the same arguments."""
        ranks = self.cluster.evaluation_ranks
        if ranks == 1:
            return [self.python, "-m", "pipeline", "evaluate", *given]
        # The ranks are of one node, and meet there whatever its name stands for.
        meeting = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks)]
        return [self.python, "-m", "launch.node", *meeting, "--module", "pipeline.evaluation.worker", *given]

    def worker(self, runs: str = "", recipe_file: str = "") -> list[str]:
        """The module of a rank and its arguments."""
        # A hostfile may give each host another number of ranks; elsewhere all nodes are asked for as many GPUs.
        gpus = "ranks" if self.target == "hosts" and self.cluster.gpus_per_node else str(self.cluster.gpus_per_node)
        preflight = ["--preflight", gpus] if self.cluster.preflight.before_training else []
        return ["pipeline.training.worker", *self.run_arguments(runs, recipe_file), *preflight]

    @property
    def parts(self) -> list[str]:
        """The jobs that make up the tokenization on many machines, in their order."""
        scan = ["tokenize-scan"] if self.recipe.tokenize.clean.remove_duplicates else []
        return [*scan, "tokenize", "tokenize-finish"] if self.tokenizes else []


def check_stage(launch: Launch) -> None:
    """`UserError` where the stage has nothing to do."""
    if launch.stage == "tokenize" and not launch.tokenizes:
        raise UserError(
            f"--stage tokenize: data.shards {launch.recipe.data.shards} names shards made before, there is nothing to "
            "tokenize"
        )


def require_program(name: str, package: str) -> None:
    """`UserError` where `name` is not on PATH."""
    if shutil.which(name) is None:
        raise UserError(f"--submit: {name} is not on PATH here: {package}")


def job_name(launch: Launch, stage: str) -> str:
    """Name of a stage's job, for Slurm."""
    return f"adaponder-{launch.recipe.name}-{stage}"


def dns_label(name: str, longest: int = 40) -> str:
    """`name` as a DNS label (RFC 1123): lower-case letters, digits and hyphens."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
    if label == name and len(label) <= longest:
        return label
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]  # two names must not become one
    return f"{label[: longest - 7].rstrip('-')}-{mark}"
