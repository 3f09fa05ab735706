"""Loading a checkpoint on another number of ranks, through DeepSpeed's universal checkpoint.

DeepSpeed's converter writes each parameter's fp32 weights and moments into files of their own, from which every rank
reads its share. Loading them under ZeRO 3 is silently wrong in two ways (DeepSpeed 0.19.8): every parameter group gets
the settings of the first, and all groups count their steps in one tensor, which then advances once for each of them.
Both are repaired here, and checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from pipeline.checkpoint import Checkpoint
from pipeline.durable import PARTIAL_SUFFIX
from pipeline.errors import WorldError
from pipeline.training.agreement import from_rank_0
from pipeline.training.engine import Engine
from pipeline.training.oversight import Oversight
from pipeline.training.watchdog import PATIENCE

SUFFIX = ".universal" + PARTIAL_SUFFIX
"""Of the folder's name; what a kill leaves of it goes with everything else that is half written."""
_CONVERTERS_POINTER = "latest_universal"
_POLL_SECONDS = 0.5


@contextmanager
def universal_checkpoint(checkpoint: Checkpoint, oversight: Oversight, device: torch.device) -> Iterator[str]:
    """The converted checkpoint's tag, beside the checkpoint, for as long as the block lasts; collective.

    It takes 12 bytes a parameter more on the disk of the run. While rank 0's process converts, every rank waits and
    hears wishes to stop: raises `Stopped` for those, `WorldError` on every rank when the conversion fails.
    """
    folder = checkpoint.path.with_name(checkpoint.name + SUFFIX)
    try:
        failure = _converted(checkpoint, folder, oversight, device)
        if failure is not None:
            raise WorldError(f"{checkpoint.path} cannot be converted for this number of ranks in {folder}: {failure}")
        yield folder.name
        dist.barrier()
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(_CONVERTERS_POINTER).unlink(missing_ok=True)


def _converted(checkpoint: Checkpoint, folder: Path, oversight: Oversight, device: torch.device) -> str | None:
    """Convert and wait; returns what went wrong, on every rank."""
    process = None
    with tempfile.TemporaryFile() as said:
        try:
            if dist.get_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
                command = [sys.executable, "-m", "pipeline.training.universal_conversion"]
                process = subprocess.Popen(
                    [*command, str(checkpoint.path), str(folder)],
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    # Nothing of it needs a GPU, and a context on one takes memory that the engine will want.
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
                )
            while True:
                oversight.watchdog.alive("converting the checkpoint", PATIENCE)
                oversight.stop_if_wished(checkpoint.step, device)
                code = from_rank_0(process.poll() if process else None)
                if code is not None:
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        if process is None:
            return from_rank_0(None)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        if code:
            print("\n".join(lines), file=sys.stderr, flush=True)
        reason = lines[-1] if lines else "no message"
        return from_rank_0(f"{reason} (exit code {code}; all of it is in the log of rank 0)" if code else None)


def load_universal(engine: Engine, folder: Path, tag: str) -> None:
    """Load what `universal_checkpoint` gives into an engine built for it; collective."""
    own = [_settings(group) for group in engine.optimizer.param_groups]
    loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
    if loaded is None:  # DeepSpeed only warns, and would go on from the start
        raise WorldError(f"{folder / tag}: DeepSpeed finds no states for this rank in it")
    for group, settings in zip(engine.optimizer.param_groups, own, strict=True):
        group.update(settings)
    states = cast(Any, engine.optimizer).optimizer.state
    for state in states.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    _check(engine, own)


def _check(engine: Engine, own: list[dict[str, Any]]) -> None:
    """Both repairs hold: they are undone if a later DeepSpeed keeps its states elsewhere."""
    assert [_settings(group) for group in engine.optimizer.param_groups] == own, "groups lost their settings"
    steps = [state["step"] for state in cast(Any, engine.optimizer).optimizer.state.values()]
    assert steps, "the optimizer has no states"
    assert len({float(step) for step in steps}) == 1, "groups have taken different numbers of steps"
    places = [step.data_ptr() for step in steps if torch.is_tensor(step)]
    assert len(set(places)) == len(places), "groups count their steps in one tensor"


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
