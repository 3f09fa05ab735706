"""Where a checkpoint comes from: its training, its data by source, its recipe."""

from __future__ import annotations

import yaml

from pipeline.data.manifest import Manifest
from pipeline.evaluation.subject import Subject
from pipeline.release.provenance import without_folders
from pipeline.reporting.content import Chapter, Fact, Table
from pipeline.run_folder import RunFolder


def tracked_run(folder: RunFolder) -> str | None:
    """The MLflow run of the training."""
    from pipeline.tracking.identity import read_identity

    noted = read_identity(folder)
    return noted.run_id if noted is not None else None


def origin_chapter(subject: Subject, mlflow_run: str | None) -> Chapter:
    """Everything by which the checkpoint is found again and made again."""
    checkpoint, state = subject.checkpoint, subject.checkpoint.state
    ranks = "1 rank" if state.world_size == 1 else f"{state.world_size} ranks"
    facts = [
        Fact("Run", str(state.recipe.get("name", subject.folder.recipe.name))),
        Fact("Checkpoint", checkpoint.name),
        Fact("Saved as", state.save_id),
        Fact("Step", f"{state.step:,}"),
        Fact("Tokens trained on", f"{state.tokens:,} ({state.rows:,} rows)"),
        Fact("Phase", state.phase),
        Fact("Trained by", f"{ranks}, {state.precision}, ZeRO stage {state.zero_stage}, seed {state.seed}"),
        Fact("Recipe", f"sha256 {state.recipe_hash}"),
        Fact("Data (manifest)", f"sha256 {state.manifest_hash}"),
        Fact("MLflow run", mlflow_run or "none yet"),
        Fact("Versions", ", ".join(f"{name} {version}" for name, version in state.versions.items())),
    ]
    return Chapter(
        "Where it comes from",
        [
            "What the training read and what it was made with. The recipe is that of the training, every default "
            "filled in; folders are reduced to their last name."
        ],
        facts=facts,
        tables=[data_table(subject.manifest)],
        verbatim=("The recipe", yaml.safe_dump(without_folders(state.recipe), sort_keys=False, allow_unicode=True)),
    )


def data_table(manifest: Manifest) -> Table:
    """Documents, tokens and bytes of every source, for training and for validation."""
    rows: list[tuple[str, ...]] = []
    parts = set()
    for split in sorted(manifest.splits.values(), key=lambda split: (split.split != "train", split.source or "")):
        for source, count in sorted(split.sources.items()):
            rows.append((split.split, source, f"{count.documents:,}", f"{count.tokens:,}", f"{count.text_bytes:,}"))
        if len(split.sources) > 1:
            numbers = (f"{split.documents:,}", f"{split.tokens:,}", f"{split.text_bytes:,}")
            rows.append((split.split, "all", *numbers))
        if split.split == "train":
            parts.add(len(rows) - 1)
    head = ("split", "source", "documents", "tokens", "bytes of text")
    return Table("Data by source", head, rows, frozenset({2, 3, 4}), frozenset(parts))
