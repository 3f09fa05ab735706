"""The files of a release: weights, configuration, the network's own code, tokenizer.

The code is copied as it is, so that what is loaded with `trust_remote_code` is what was trained.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging as progress_bars

import pipeline.model
from pipeline.data.manifest import TokenizerEntry
from pipeline.durable import fsync_file, fsync_folder, sha256_file
from pipeline.errors import WorldError
from pipeline.evaluation.halting import inference_halting
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_files() -> list[Path]:
    """The source files that a release carries: those that transformers follows from the model's own on loading.

    What counts or measures the network from outside stays behind.
    """
    model = Path(str(pipeline.model.modeling_adaponder.__file__))
    return sorted({model, *map(Path, get_relative_import_files(model))})


def export(
    model: AdaPonderForCausalLM,
    dtype: str,
    shards: Path,
    tokenizer: TokenizerEntry,
    folder: Path,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write all files that loading needs into `folder`, weights in `dtype`.

    Weights beyond `max_shard_bytes` are cut between tensors into several files, with model.safetensors.index.json.

    `model` is rounded to `dtype` in place, and set to skip halted tokens where it may. `tokenizer` is what the manifest
    of `shards` says of the tokenizer there.
    Raises `WorldError` when the tokenizer is missing or another than the manifest's, or weights cannot be written.
    """
    tokenizer_folder = shards / "tokenizer"
    _require_tokenizer(tokenizer_folder / "tokenizer.json", tokenizer)
    # Parameters only: RoPE's frequencies are no weights, and a loaded model computes them in fp32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    config = model.config
    config.dtype = DTYPES[dtype]
    config.halting = inference_halting(config)
    # What the documents were joined with: after it the model starts another one.
    end = tokenizer.end_of_document_id
    for ids in (config, model.generation_config):
        ids.bos_token_id = ids.eos_token_id = ids.pad_token_id = end
    config.auto_map = {
        "AutoConfig": _address(AdaPonderConfig),
        "AutoModelForCausalLM": _address(AdaPonderForCausalLM),
    }
    progress_bars.disable_progress_bar()  # its own bar, on stderr, would cut through the stage's console
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_bytes)
    except SafetensorError as error:  # what a full disk is to safetensors; it is no OSError
        raise WorldError(f"the weights cannot be written to {folder}: {error}") from error
    for path in [*model_files(), *sorted(tokenizer_folder.iterdir())]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():
        fsync_file(path)
    fsync_folder(folder)


def _require_tokenizer(path: Path, entry: TokenizerEntry) -> None:
    if not path.is_file():
        raise WorldError(f"{path} is missing: the release needs the run's tokenizer")
    found = sha256_file(path)
    if found != entry.sha256:
        raise WorldError(
            f"{path} is not the tokenizer that the shards were made with: its SHA-256 is {found[:12]}, the manifest "
            f"says {entry.sha256[:12]}: bring it back"
        )


def _address(of: type) -> str:
    """A class as auto_map names it: FILE.CLASS."""
    return f"{of.__module__.rpartition('.')[2]}.{of.__name__}"
