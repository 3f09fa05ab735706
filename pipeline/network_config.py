"""The network's configuration: the recipe's model section and the backbone that it names, in numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import GPTNeoXConfig, PretrainedConfig

from pipeline.errors import UserError
from pipeline.model import AdaPonderConfig
from pipeline.recipe import Architecture, Recipe


def model_config(recipe: Recipe) -> AdaPonderConfig:
    """The network's configuration; `UserError` when the backbone cannot be read, is no GPT-NeoX or does not go with the
    model section."""
    backbone = recipe.model.backbone
    if isinstance(backbone, Architecture):
        base = GPTNeoXConfig(
            **backbone.model_dump(exclude={"rotary_pct"}),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": backbone.rotary_pct,
            },
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
    else:
        base = _published_config(backbone)
    try:
        return AdaPonderConfig.from_gpt_neox(base, **adaponder_fields(recipe, base.hidden_size))
    except ValueError as error:  # of a backbone by name the recipe alone does not know enough
        raise UserError(f"model: {first_line(error)}") from error


def adaponder_fields(recipe: Recipe, hidden_size: int) -> dict[str, Any]:
    section = recipe.model
    return {
        # An AdaPonder's own folder may say otherwise; every phase sets it anew.
        "halting": "masked",
        "max_passes": section.max_passes,
        "gating": section.gating,
        "feedback": section.feedback,
        "pause_tokens": section.pause_tokens,
        "shared_gate": section.shared_gate,
        "halt_threshold": section.halt_threshold,
        "gate_on_last_pass": section.gate_on_last_pass,
        "ponder_loss_on": section.ponder_loss_on,
        "kv_reuse": section.kv_reuse,
        "freeze_halted": section.freeze_halted,
        "embed_scale": math.sqrt(hidden_size) if section.scale_embeds else 1.0,
        "initial_embed_scale": section.initial_embed_scale,
        "gate_bias": section.gate_bias,
        "gate_output_std": section.gate_output_std,
        "mixture_top_k": section.mixture_top_k,
    }


def local_folder(backbone: str) -> Path | None:
    """The folder that `backbone` names, or None for a hub id; `UserError` for a path that holds no checkpoint."""
    path = Path(backbone).expanduser()
    if not (backbone.startswith((".", "/", "~")) or path.exists()):
        return None
    if not (path / "config.json").is_file():
        raise UserError(f"model.backbone {backbone}: no such checkpoint folder (it would hold config.json)")
    return path


def _published_config(backbone: str) -> GPTNeoXConfig:
    where = str(local_folder(backbone) or backbone)
    try:
        model_type = PretrainedConfig.get_config_dict(where)[0].get("model_type")
        classes = {found.model_type: found for found in (GPTNeoXConfig, AdaPonderConfig)}
        if model_type in classes:
            return classes[model_type].from_pretrained(where)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.backbone {backbone}: neither a folder here nor a model of the hub within reach: "
            f"{first_line(error)}; on a machine without network give a local path"
        ) from error
    raise UserError(f"model.backbone {backbone} is a {model_type}, not a GPT-NeoX (Pythia) network")


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
