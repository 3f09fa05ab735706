"""A checkpoint's weights as a folder of their own, without DeepSpeed's files.

For work with the network beside the pipeline. What is published goes through `pipeline.release`, which verifies it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from pipeline.checkpoint import find_checkpoint, load_model
from pipeline.checkpoint_listing import checkpoints_of
from pipeline.console import console
from pipeline.durable import PARTIAL_SUFFIX, fsync_file, fsync_folder
from pipeline.errors import UserError, WorldError


def export_and_tell(run: str, runs: Path | None, name: str, output: Path | None) -> None:
    """Write config.json and fp32 safetensors of a checkpoint into `output`, whole or not at all.

    Raises `UserError` when the folder is there already or there is no such checkpoint, `WorldError` when the checkpoint
    is damaged or the disk refuses.
    """
    folder = checkpoints_of(run, runs)
    checkpoint = find_checkpoint(folder, name)
    output = output or folder.parent / "export" / checkpoint.name
    if output.exists():
        raise UserError(f"{output} is there already: take another --output, or move it away")
    with console.status(f"export: {checkpoint.name}"):
        model = load_model(checkpoint)
        partial = output.with_name(output.name + PARTIAL_SUFFIX)
        if partial.exists():  # of one that was cut short
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        disable_progress_bar()
        try:
            model.save_pretrained(partial)
            for path in partial.iterdir():
                fsync_file(path)
            fsync_folder(partial)
            partial.rename(output)
            fsync_folder(output.parent)
        except (OSError, SafetensorError) as error:  # the second is what a full disk is to safetensors
            shutil.rmtree(partial, ignore_errors=True)
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise WorldError(f"{output} cannot be written: {reason}") from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"export: {checkpoint.name}, {parameters:,} parameters in float32: {output}")
