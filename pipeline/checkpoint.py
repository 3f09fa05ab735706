"""What a checkpoint is, and how to read one without the ranks that wrote it.

    checkpoints/step-00001000/   DeepSpeed's files, config.json, trainer_state.json, COMPLETE
    checkpoints/latest           name of the newest complete one, for people and other tools

COMPLETE is written last, inside a folder that takes its name by a rename; it lists every file with size and SHA-256. A
folder without it is not a checkpoint. `pipeline.training.saving` writes checkpoints, `pipeline.training.fallback` picks
the one that a training goes on from; evaluation and release read them here.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from pipeline.checkpoint_lock import reading
from pipeline.checkpoint_marker import MARKER, Marker, read_marker, wrong_files, wrong_sizes
from pipeline.errors import UserError, WorldError
from pipeline.heavy_imports import import_deepspeed
from pipeline.model import AdaPonderConfig

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM

STATE_FILE = "trainer_state.json"
FROZEN_FILE = "frozen_weights.safetensors"
"""Weights that a bf16 training keeps frozen, in fp32: DeepSpeed has them in bf16 only."""
POINTER = "latest"
DAMAGED_SUFFIX = ".damaged"
"""Added to the name of a checkpoint that a training could not go on from, so that its step can be saved again."""
_NAME = re.compile(r"step-(\d{8})")
_OTHERS = "; --checkpoint takes another one, and `adaponder train` continues from the newest that is whole"


class LogitsFingerprint(BaseModel):
    """What the network says to a fixed input, in a few numbers: loaded anew, it must say the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    last: list[float]
    """Logits of the last position, the first few of the vocabulary, float32."""
    total: float
    """Sum of all logits, float64."""
    squares: float
    """Sum of their squares, float64."""
    count: int
    """How many logits those are sums of."""
    computed_with: dict[str, str]
    """What rounding depends on: where all of it is the same, the numbers are the same to the last digit."""


class DepthState(BaseModel):
    """What a training that holds a target depth knows after a step (`pipeline.training.depth_control`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str
    """Name of the phase that it belongs to; another phase starts anew."""
    depth: float
    """Running mean of passes a token."""


class TrainerState(BaseModel):
    """trainer_state.json: where training stands, and from what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Optimizer steps taken."""
    save_id: str
    """Random for every save: tells apart two checkpoints of the same step, recipe and data."""
    rows: int
    """Rows consumed; the one number that the data order resumes from."""
    tokens: int
    """Tokens predicted, rows x seq_len."""
    phase: str
    trained: str
    """The set of parameters that the optimizer's state belongs to: all, gates, or patterns of their names with spaces
    between."""
    seed: int
    """Every step seeds its random numbers from (seed, step, rank), so no generator state needs saving."""
    recipe: dict[str, Any]
    recipe_hash: str
    manifest_hash: str
    mlflow_run_id: str | None
    world_size: int
    zero_stage: int
    precision: str
    versions: dict[str, str]
    fingerprint: LogitsFingerprint | None = None
    """None in checkpoints of versions that took none."""
    depth_control: DepthState | None = None
    """Of a phase with a target depth."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: TrainerState
    marker: Marker

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def step(self) -> int:
        return self.state.step


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints below `folder`, oldest first.

    Raises `WorldError` naming the file when a complete checkpoint no longer is what its marker says.
    """
    return [open_checkpoint(path) for path in complete_folders(folder)]


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to continue from."""
    return bool(complete_folders(folder))


def open_checkpoint(path: Path) -> Checkpoint:
    """The complete checkpoint in that folder, its files' sizes compared with the marker.

    Raises `WorldError` naming what cannot be read, is missing or of another size.
    """
    marker = read_marker(path)
    try:
        state = TrainerState.model_validate_json((path / STATE_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        if wrong := wrong_sizes(path, marker):  # says more: the state's own file may be cut short
            raise WorldError(wrong[0]) from error
        raise WorldError(f"{path} is marked complete but cannot be read: {' '.join(str(error).split())}") from error
    if wrong := wrong_sizes(path, marker):
        raise WorldError(wrong[0])
    return Checkpoint(path, state, marker)


def complete_folders(folder: Path) -> list[Path]:
    """The folders below `folder` that have a checkpoint's name and marker, oldest first; nothing in them is checked."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / MARKER).is_file())


def find_checkpoint(folder: Path, name: str = POINTER) -> Checkpoint:
    """The checkpoint called `name` (step-00001000), or the newest for "latest"; `UserError` when there is none.

    Other checkpoints are not looked at: a damaged older one does not stand in the way.
    """
    complete = complete_folders(folder)
    if not complete:
        raise UserError(f"{folder} holds no complete checkpoint: run `adaponder train` first")
    path = complete[-1] if name == POINTER else folder / name
    if path not in complete:
        raise UserError(
            f"{folder} holds no complete checkpoint {name}: there are {', '.join(path.name for path in complete)}"
        )
    try:
        return open_checkpoint(path)
    except WorldError as error:
        raise WorldError(f"{error}{_OTHERS}") from error


def newest_whole(folder: Path) -> Checkpoint:
    """The newest checkpoint whose state can be read and whose files have the sizes of its marker.

    Raises `WorldError`, saying what is wrong with each, when none has.
    """
    wrong = []
    for path in reversed(complete_folders(folder)):
        try:
            return open_checkpoint(path)
        except WorldError as error:
            wrong.append(str(error))
    raise none_verifies(folder, wrong)


def none_verifies(folder: Path, wrong: list[str]) -> WorldError:
    """The error of a run that has checkpoints and can go on from none of them."""
    return WorldError(
        f"no checkpoint in {folder} verifies: {'; '.join(wrong)}; bring one back, or move the folder away to start anew"
    )


def require_same_manifest(checkpoint: Checkpoint, manifest_hash: str, shards: Path) -> None:
    """Refuse shards other than those the checkpoint was trained on: `UserError` with both hashes."""
    if checkpoint.state.manifest_hash != manifest_hash:
        raise UserError(
            f"{shards} has manifest {manifest_hash[:12]}, but {checkpoint.path} was trained on manifest "
            f"{checkpoint.state.manifest_hash[:12]}: give back its shards, or take another run name"
        )


def load_model(checkpoint: Checkpoint, *, hashes: bool = True) -> AdaPonderForCausalLM:
    """The network with the training's own weights: fp32, on the CPU, whatever ZeRO stage or number of ranks wrote it.

    hashes: compare the files with the marker's hashes first; the weights' files are all of it but a few kilobytes.
    Retention leaves the checkpoint alone until this is done. Raises `WorldError` naming the checkpoint when it has been
    removed, is damaged, or its files do not give the network that its config.json describes.
    """
    with reading(checkpoint.path):
        if hashes and (wrong := wrong_files(checkpoint.path, checkpoint.marker)):
            raise WorldError(wrong[0] + _OTHERS)
        try:
            config = AdaPonderConfig.from_pretrained(checkpoint.path)
            weights = _full_precision_weights(checkpoint)
        except (RuntimeError, KeyError, ValueError, TypeError, OSError, AssertionError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise WorldError(f"{checkpoint.path} cannot be loaded: {first}") from error
    # By transformers' own loading: it builds on no memory at first, and yet computes what is in no checkpoint (RoPE's
    # frequencies).
    disable_progress_bar()
    from pipeline.model import AdaPonderForCausalLM

    loaded: Any = AdaPonderForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
    )
    model, info = loaded
    wrong = [f"{kind} {sorted(map(str, keys))[0]}" for kind, keys in info.items() if keys]
    if wrong:
        raise WorldError(f"{checkpoint.path} does not hold the network of its config.json: {'; '.join(wrong)}")
    return model.eval()


def _full_precision_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    state = checkpoint.state
    weights: dict[str, torch.Tensor] = {}
    if state.zero_stage < 3:
        # Every rank keeps all weights in the training's precision; frozen ones have no other copy.
        # weights_only=False: the file holds DeepSpeed's own objects; only a run's own files are read here.
        model_states = checkpoint.path / "mp_rank_00_model_states.pt"
        weights |= torch.load(model_states, map_location="cpu", weights_only=False)["module"]
    if state.zero_stage > 0 or state.precision != "fp32":
        # DeepSpeed talks on stdout, from its import on; that belongs to the stage.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import_deepspeed()
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            masters = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
        weights |= {name: torch.as_tensor(weight) for name, weight in (masters or {}).items()}
    if (checkpoint.path / FROZEN_FILE).is_file():
        # Copies: what safetensors gives may still lie in the file, which need not outlive the reading.
        weights |= {name: weight.clone() for name, weight in load_file(checkpoint.path / FROZEN_FILE).items()}
    return weights
