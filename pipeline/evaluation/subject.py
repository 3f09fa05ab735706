"""What suites judge: a checkpoint's network, and the run's data beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from pipeline.checkpoint import Checkpoint, load_model
from pipeline.data.manifest import Manifest
from pipeline.data.shard_source import ShardSource
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


@dataclass(frozen=True)
class Subject:
    """One checkpoint of a run; several suites on it share the network, which is loaded when the first asks for it."""

    recipe: Recipe
    """Whose `evaluate` section says how to judge; the checkpoint may have been trained by another."""
    folder: RunFolder
    checkpoint: Checkpoint
    manifest: Manifest
    network: AdaPonderForCausalLM | None = None
    """In the checkpoint's place, for what is not saved."""

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    @cached_property
    def model(self) -> AdaPonderForCausalLM:
        """In fp32 with the training's master weights, in evaluation mode, on the device."""
        model = self.network or load_model(self.checkpoint)
        torch.nn.Module.to(model, self.device)  # in place; transformers' own wrapper of it has no usable type
        return model.eval()

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' tokenizer of the shards."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder.shards / "tokenizer")

    @cached_property
    def shards(self) -> ShardSource:
        return self.folder.open_shards()

    def validation_rows(self, limit: int | str) -> dict[str, int]:
        """How many rows of each validation set are judged, by the set's key, `limit` of each at most ("all": no limit).

        Raises `UserError` where the shards hold none.
        """
        rows = {
            key: split.rows if limit == "all" else min(int(limit), split.rows)
            for key, split in self.manifest.splits.items()
            if split.split == "validation"
        }
        if not sum(rows.values()):
            raise UserError(
                f"{self.folder.shards} holds no validation rows: set tokenize's validation files or validation_share"
            )
        return rows

    @property
    def source_keys(self) -> dict[str, str]:
        """What each source is called in the names of metrics: the safe and distinct form that names its shards."""
        sets = self.manifest.splits.items()
        return {split.source: key.removeprefix("validation-") for key, split in sets if split.source is not None}
