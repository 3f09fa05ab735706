"""Shards that are finished: are they those the recipe asks for, and are they whole?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.console import console
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.shard_cache import is_url
from pipeline.durable import sha256_file
from pipeline.errors import UserError, WorldError
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder

TOKENIZER_FOLDER = "tokenizer"


def use_shards_made_before(recipe: Recipe, folder: RunFolder) -> Manifest:
    """The manifest of the shards that `data.shards` points at, a folder or a URL, if they fit the recipe.

    Raises `UserError` where they do not, `WorldError` where something of a folder is missing or damaged; shards at a
    URL are checked when they are fetched.
    """
    folder.open_shards()
    shards = folder.shards
    manifest = read_manifest(shards)
    if manifest.seq_len != recipe.tokenize.seq_len:
        raise UserError(
            f"{shards} has rows of seq_len {manifest.seq_len}, the recipe's tokenize.seq_len is "
            f"{recipe.tokenize.seq_len}: make them equal or point data.shards elsewhere"
        )
    if not is_url(recipe.data.shards):
        _check_nothing_is_damaged(manifest, shards)
    console.print(f"nothing to do: data.shards points at {recipe.data.shards}, made before", markup=False)
    return manifest


def use_finished_shards(recipe: Recipe, shards: Path) -> Manifest:
    manifest = read_manifest(shards)
    if manifest.settings_sha256 != recipe.tokenize_hash():
        differences = _differences(manifest.settings, settings_of(recipe))
        raise UserError(
            f"{shards} was made with other settings ({'; '.join(differences)}): "
            "give the run another name, or remove that folder to tokenize anew"
        )
    _check_nothing_is_damaged(manifest, shards)
    console.print(f"nothing to do: {shards} is complete", markup=False)
    return manifest


def _check_nothing_is_damaged(manifest: Manifest, shards: Path) -> None:
    """That all shards are there with their sizes, and the tokenizer that made them."""
    tokenizer = shards / TOKENIZER_FOLDER / "tokenizer.json"
    if not tokenizer.is_file():
        raise WorldError(f"{tokenizer} is missing: bring it back, or remove {shards} and tokenize anew")
    if sha256_file(tokenizer) != manifest.tokenizer.sha256:
        raise WorldError(
            f"{tokenizer} is not the tokenizer that made these shards, its manifest has another sha256: "
            f"bring it back, or remove {shards} and tokenize anew"
        )
    for split in manifest.splits.values():
        for shard in split.shards:
            path = shards / shard.name
            for needed in (path, path.with_suffix(".idx")):
                if not needed.is_file():
                    raise WorldError(f"{needed} is missing: bring it back, or remove {shards} and tokenize anew")
            if path.stat().st_size != shard.bytes:
                raise WorldError(
                    f"{path} has {path.stat().st_size} bytes, its manifest says {shard.bytes}: "
                    f"bring it back, or remove {shards} and tokenize anew"
                )


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What `Recipe.tokenize_hash` hashes."""
    return {"seed": recipe.seed, "tokenize": recipe.tokenize.model_dump(mode="json")}


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Where two nested settings differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        below = [(f"{place}.{key}".lstrip("."), before.get(key), now.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        below = [(f"{place}.{number}", *pair) for number, pair in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [f"{place} was {before!r}, is {now!r}"]
    return [difference for key, old, new in below for difference in _differences(old, new, key)]
