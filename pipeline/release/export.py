"""The files of a release: weights, configuration, the network's own code, tokenizer.

The code is copied as it is, so that what is loaded with `trust_remote_code` is what was trained.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers.utils import logging as progress_bars

import pipeline.model
from pipeline.durable import fsync_file, fsync_folder
from pipeline.errors import WorldError
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_files() -> list[Path]:
    """The source files that a release carries. The package's __init__ has nothing that loading needs."""
    folder = Path(str(pipeline.model.__file__)).parent
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")


def export(model: AdaPonderForCausalLM, dtype: str, tokenizer: Path, folder: Path) -> None:
    """Write all files that loading needs into `folder`, weights in `dtype`.

    `model` is cast to `dtype` in place. `tokenizer` is the folder of the run's tokenizer. Raises `WorldError` when the
    tokenizer is missing.
    """
    if not (tokenizer / "tokenizer.json").is_file():
        raise WorldError(f"{tokenizer / 'tokenizer.json'} is missing: the release needs the run's tokenizer")
    torch.nn.Module.to(model, DTYPES[dtype])
    config = model.config
    config.dtype = DTYPES[dtype]
    config.auto_map = {
        "AutoConfig": _address(AdaPonderConfig),
        "AutoModelForCausalLM": _address(AdaPonderForCausalLM),
    }
    model.generation_config.pad_token_id = config.eos_token_id
    progress_bars.disable_progress_bar()  # its own bar, on stderr, would cut through the stage's console
    model.save_pretrained(folder)
    for path in [*model_files(), *sorted(tokenizer.iterdir())]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():
        fsync_file(path)
    fsync_folder(folder)


def _address(of: type) -> str:
    """A class as auto_map names it: FILE.CLASS."""
    return f"{of.__module__.rpartition('.')[2]}.{of.__name__}"
