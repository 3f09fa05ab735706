"""One rank's part of a checkpoint: taken while the training stands still, written afterwards, made whole by rank 0.

DeepSpeed's own save is not atomic, and its rank 0 writes `latest` before the other ranks are done. So every rank writes
into a folder with another name, hashing what it writes; rank 0 adds the state and the marker with all hashes, makes it
durable, and renames.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pipeline.checkpoint import FROZEN_FILE, POINTER, STATE_FILE, TrainerState, checkpoint_name
from pipeline.checkpoint_marker import MARKER, MarkedFile, write_marker
from pipeline.durable import PARTIAL_SUFFIX, fsync_folder, write_text
from pipeline.errors import WorldError
from pipeline.training.engine import Engine
from pipeline.training.host_copy import HostMemory
from pipeline.training.state_files import StateFiles, naming, refused


class CheckpointFiles:
    """What this rank writes of a checkpoint.

    `write` and `complete` may run in another thread than the training: they touch nothing that training changes, and
    call no collective.
    """

    def __init__(
        self,
        partial: Path,
        path: Path,
        save_id: str,
        state: TrainerState,
        frozen: dict[str, torch.Tensor],
        files: StateFiles,
    ) -> None:
        self.save_id = save_id
        """The same on all ranks."""
        self._partial, self._path = partial, path
        self._state, self._frozen, self._files = state, frozen, files
        self._rank = dist.get_rank()

    def write(self) -> dict[str, MarkedFile]:
        """Write this rank's files, durably; returns them by their path in the checkpoint.

        Raises `WorldError` naming the file when the disk refuses.
        """
        self._files.write()
        offloaded = self._partial / "offloaded_tensors"
        with naming(offloaded):  # of states on NVMe DeepSpeed copies each rank's files by itself
            self._files.measure(_files(offloaded / f"rank{self._rank:0>2d}"))
        if self._rank == 0 and self._frozen:
            with naming(self._partial / FROZEN_FILE):
                save_file(self._frozen, self._partial / FROZEN_FILE)
                self._files.measure([self._partial / FROZEN_FILE])
        return self._files.written

    def complete(self, written: dict[str, MarkedFile]) -> int:
        """Rank 0's part, once all ranks have `written` theirs: the state, the marker, the name.

        Returns the bytes of all files but the marker. Raises `WorldError` as `write` does.
        """
        partial, path, files = self._partial, self._path, self._files
        files.written |= written
        with naming(partial / STATE_FILE):
            write_text(partial / STATE_FILE, self._state.model_dump_json(indent=2) + "\n")
        with naming(partial / MARKER):
            files.measure(_files(partial))
            fsync_folder(partial)
            write_marker(partial, files.written)
        if (path / MARKER).exists():
            raise WorldError(f"{path} appeared while this training ran: is another one writing into {path.parent}?")
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        fsync_folder(path.parent)
        with naming(path.parent / POINTER):
            write_text(path.parent / POINTER, path.name + "\n")
        return sum(file.size for file in files.written.values())


def take_checkpoint(
    engine: Engine,
    folder: Path,
    state: TrainerState,
    frozen: dict[str, torch.Tensor],
    memory: HostMemory | None,
) -> CheckpointFiles:
    """Take what becomes `folder/step-...` of the engine, as it stands now; collective.

    memory: where DeepSpeed's files are kept until they are written; without it they are written at once, as states on
    NVMe are in any case. frozen: weights that no step changes. Raises `WorldError` naming the file when a disk refuses,
    on the rank that it refused: the others wait for that rank until the launcher ends them.
    """
    path = folder / checkpoint_name(state.step)
    partial = folder / (path.name + PARTIAL_SUFFIX)
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        with naming(partial):
            partial.mkdir(parents=True)
        with naming(partial / "config.json"):
            engine.module.config.save_pretrained(partial)
    save_id = [state.save_id]
    dist.broadcast_object_list(save_id, src=0)  # and the folder is there
    files = StateFiles(partial, memory)
    writer = cast(Any, engine).checkpoint_engine
    writer.save = files.save
    try:
        engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    except OSError as error:  # of what DeepSpeed writes by itself: folders, a script, states on NVMe
        raise refused(Path(error.filename2 or error.filename or partial), error) from error
    finally:
        del writer.save
    return CheckpointFiles(partial, path, save_id[0], state, frozen, files)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
