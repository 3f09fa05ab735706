"""What a run has read, as it is told to MLflow: a data set by name and digest, and what of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.data.manifest import Manifest, manifest_hash
from pipeline.data.shard_cache import is_url
from pipeline.run_folder import RunFolder


@dataclass(frozen=True)
class DataRead:
    """One data set. Runs that read the same one have the same name and digest."""

    name: str
    digest: str
    """SHA-256 of the content."""
    context: str
    """What it was read for: training, validation, evaluation."""
    source_type: str
    """local or hugging_face: what MLflow knows sources by."""
    source: dict[str, Any]
    profile: dict[str, Any] = field(default_factory=dict)
    """Of the whole data set; MLflow keeps what it was told first."""
    tags: dict[str, str] = field(default_factory=dict)
    """What this run has read of it."""


def shards_read(folder: RunFolder, manifest: Manifest, context: str, tags: dict[str, str] | None = None) -> DataRead:
    """The run's shards. Those that several runs share have their folder's name, a run's own have the run's."""
    place = folder.shards.resolve()
    shared = not place.is_relative_to(folder.path.resolve())
    given = folder.recipe.data.shards
    return DataRead(
        name=place.name if shared else folder.recipe.name,
        digest=manifest_hash(manifest),
        context=context,
        source_type="local",
        source={"uri": given if is_url(given) else place.as_uri()},
        profile={
            "seq_len": manifest.seq_len,
            "splits": {
                name: {"rows": split.rows, "tokens": split.tokens, "documents": split.documents}
                for name, split in manifest.splits.items()
            },
        },
        tags=tags or {},
    )
