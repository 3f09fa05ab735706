"""The network a run starts from: the recipe's model section made real.

From scratch, from any GPT-NeoX checkpoint, or from an AdaPonder one; hub ids go through transformers' own cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.errors import UserError
from pipeline.network_config import adaponder_fields, first_line, local_folder, model_config
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


def start_model(recipe: Recipe) -> AdaPonderForCausalLM:
    """The network before the first step, in fp32 on the CPU; the same on every rank by the recipe's seed."""
    from pipeline.model import AdaPonderForCausalLM

    torch.manual_seed(recipe.seed)
    config = model_config(recipe)
    if recipe.model.start == "scratch":
        return AdaPonderForCausalLM(config).float()
    backbone = str(recipe.model.backbone)
    local = local_folder(backbone)
    try:
        return AdaPonderForCausalLM.from_backbone(
            str(local or backbone), **adaponder_fields(recipe, config.hidden_size)
        ).float()
    except (OSError, ValueError) as error:
        raise UserError(f"model.backbone {backbone}: its weights cannot be taken: {first_line(error)}") from error
