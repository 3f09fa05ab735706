"""How the network is computed in training: what costs or saves memory and time and changes results by rounding alone.

None of it belongs to a run's identity: each attempt sets it anew from its own recipe, on whatever network it starts
from or goes on with.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from pipeline.errors import UserError
from pipeline.model.vocabulary_loss import cross_entropy_path
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


def check_computation(recipe: Recipe, on_gpu: bool | None = None, has_flash_attn: bool | None = None) -> None:
    """`UserError` for what a machine cannot compute: this one, where nothing else is said of it."""
    train = recipe.train
    on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    has_flash_attn = is_flash_attn_2_available() if has_flash_attn is None else has_flash_attn
    if train.attention == "flex_attention" and not on_gpu:
        raise UserError(
            "train.attention flex_attention: torch cannot train with it on a CPU (it has no backward pass there); take "
            "sdpa or eager"
        )
    if train.attention == "flash_attention_2":
        refusal = "train.attention flash_attention_2"
        if not on_gpu:
            raise UserError(f"{refusal}: it runs on a GPU only and there is none here; take sdpa or eager")
        if not has_flash_attn:
            raise UserError(f"{refusal}: the package flash-attn is not installed: install it, or take sdpa")
        if train.precision != "bf16":
            raise UserError(f"{refusal}: it computes in 16 bits; take train.precision bf16, or sdpa")
    if train.compile_layers and not on_gpu and shutil.which(_cpu_compiler()) is None:
        raise UserError(
            f"train.compile_layers: torch.compile on a CPU needs a C++ compiler, and {_cpu_compiler()} is not found; "
            "install it, name another in CXX, or leave compile_layers false"
        )


def set_computation(model: AdaPonderForCausalLM, recipe: Recipe) -> None:
    """Make `model` compute as the recipe's train section says, before an engine is built around it."""
    train = recipe.train
    model.config.vocabulary_chunk_tokens = train.vocabulary_chunk_tokens
    model.set_attn_implementation(train.attention)
    model.set_activation_checkpointing(train.activation_checkpointing)
    if train.compile_layers:
        model.compile_layers()


def describe_computation(recipe: Recipe, device: torch.device) -> dict[str, str]:
    """What runs, in words, by what it computes."""
    train = recipe.train
    chunk, top_k = train.vocabulary_chunk_tokens, recipe.model.mixture_top_k
    return {
        "attention": train.attention,
        "activation checkpointing": train.activation_checkpointing,
        "cross entropy": cross_entropy_path(device, chunk),
        "mixture": f"{f'top {top_k}' if top_k else 'whole vocabulary'}, "
        + (f"chunks of {chunk} tokens" if chunk else "all tokens at once"),
        "halted tokens": "skipped, with sdpa" if train.skip_halted else "masked",
        "layers": "compiled" if train.compile_layers else "not compiled",
    }


def _cpu_compiler() -> str:
    """What torch.compile calls on a CPU."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
