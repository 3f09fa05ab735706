"""What a checkpoint is, and how to read one without the ranks that wrote it.

    checkpoints/step-00001000/   DeepSpeed's files, config.json, trainer_state.json, COMPLETE
    checkpoints/latest           name of the newest complete one, for people and other tools

COMPLETE is written last, inside a folder that takes its name by a rename; it lists every file with its size. A folder
without it is not a checkpoint. `pipeline.training.saving` writes checkpoints; evaluation and release read them here.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from pipeline.errors import UserError, WorldError
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM

MARKER = "COMPLETE"
STATE_FILE = "trainer_state.json"
FROZEN_FILE = "frozen_weights.safetensors"
"""Weights that a bf16 training keeps frozen, in fp32: DeepSpeed has them in bf16 only."""
POINTER = "latest"
_NAME = re.compile(r"step-(\d{8})")


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
    """The set of parameters that the optimizer's state belongs to: all or gates."""
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


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: TrainerState

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def step(self) -> int:
        return self.state.step


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints below `folder`, oldest first.

    Raises `WorldError` naming the file when a complete checkpoint no longer is what its marker says.
    """
    return [_open(path) for path in _complete(folder)]


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to continue from."""
    return bool(_complete(folder))


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / MARKER).is_file())


def find_checkpoint(folder: Path, name: str = POINTER) -> Checkpoint:
    """The checkpoint called `name` (step-00001000), or the newest for "latest"; `UserError` when there is none.

    Other checkpoints are not looked at: a damaged older one does not stand in the way.
    """
    complete = _complete(folder)
    if not complete:
        raise UserError(f"{folder} holds no complete checkpoint: run `adaponder train` first")
    if name == POINTER:
        return _open(complete[-1])
    if folder / name in complete:
        return _open(folder / name)
    raise UserError(
        f"{folder} holds no complete checkpoint {name}: there are {', '.join(path.name for path in complete)}"
    )


def require_same_manifest(checkpoint: Checkpoint, manifest_hash: str, shards: Path) -> None:
    """Refuse shards other than those the checkpoint was trained on: `UserError` with both hashes."""
    if checkpoint.state.manifest_hash != manifest_hash:
        raise UserError(
            f"{shards} has manifest {manifest_hash[:12]}, but {checkpoint.path} was trained on manifest "
            f"{checkpoint.state.manifest_hash[:12]}: give back its shards, or take another run name"
        )


def load_model(checkpoint: Checkpoint) -> AdaPonderForCausalLM:
    """The network with the training's own weights: fp32, on the CPU, whatever ZeRO stage or number of ranks wrote it.

    Raises `WorldError` naming the checkpoint when its files do not give the network that its config.json describes.
    """
    try:
        config = AdaPonderConfig.from_pretrained(checkpoint.path)
        weights = _full_precision_weights(checkpoint)
    except (RuntimeError, KeyError, ValueError, TypeError, OSError, AssertionError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise WorldError(f"{checkpoint.path} cannot be loaded: {first}") from error
    # By transformers' own loading: it builds on no memory at first, and yet computes what is in no checkpoint (RoPE's
    # frequencies).
    disable_progress_bar()
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
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            masters = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
        weights |= {name: torch.as_tensor(weight) for name, weight in (masters or {}).items()}
    if (checkpoint.path / FROZEN_FILE).is_file():
        weights |= load_file(checkpoint.path / FROZEN_FILE)
    return weights


def _open(path: Path) -> Checkpoint:
    try:
        files: dict[str, int] = json.loads((path / MARKER).read_text(encoding="utf-8"))["files"]
        state = TrainerState.model_validate_json((path / STATE_FILE).read_bytes())
    except (OSError, ValueError, KeyError, ValidationError) as error:
        raise WorldError(f"{path} is marked complete but cannot be read: {' '.join(str(error).split())}") from error
    for name, size in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise WorldError(
                f"{file} is damaged: the marker says {size} bytes; remove {path} to continue from an older one"
            )
    return Checkpoint(path, state)
