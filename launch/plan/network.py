"""The network of a recipe in numbers, also where neither its weights nor the network are at hand."""

from __future__ import annotations

from pathlib import Path

from launch.plan.pythia import pythia_by_name
from pipeline.model import AdaPonderConfig
from pipeline.network_config import model_config
from pipeline.recipe import Architecture, Recipe


def planned_config(recipe: Recipe) -> tuple[AdaPonderConfig, str]:
    """The configuration, and in words where its sizes come from.

    A backbone whose name says which of Pythia's it is, and which is no folder here, is taken from the table of Pythia's
    sizes: a plan is often made before the weights are there. Raises `UserError` where a backbone cannot be read.
    """
    backbone = recipe.model.backbone
    if isinstance(backbone, Architecture):
        config, source = model_config(recipe), "the recipe's numbers"
    elif not (Path(backbone).expanduser() / "config.json").is_file() and (known := pythia_by_name(backbone)):
        size, network = known
        model = recipe.model.model_copy(update={"backbone": network})
        config, source = model_config(recipe.model_copy(update={"model": model})), f"Pythia-{size}'s, by its name"
    else:
        config, source = model_config(recipe), f"{backbone}/config.json"
    config.vocabulary_chunk_tokens = recipe.train.vocabulary_chunk_tokens
    if recipe.train.attention == "eager":
        config._attn_implementation = "eager"
    return config, source
