"""manifest.json: what a folder of shards holds. Written last by tokenization, read by everything that loads rows.

A folder without a manifest is not a data set. The manifest's own hash names the data set in checkpoints, in MLflow
and in a release's provenance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable import sha256_json, write_text
from pipeline.errors import UserError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerEntry(_Entry):
    name: str
    """What the recipe called it: a folder, a hub id, or "byte-level BPE trained on the sources"."""
    sha256: str
    """Hash of tokenizer/tokenizer.json."""
    vocab_size: int
    """Largest token id plus one, added tokens included."""
    end_of_document_id: int


class ShardEntry(_Entry):
    name: str
    chunks: int
    rows: int
    bytes: int
    sha256: str
    index_sha256: str


class SourceCount(_Entry):
    documents: int
    tokens: int
    """End-of-document marks included, padding excluded."""
    text_bytes: int
    """UTF-8 bytes of the documents' text."""


class SplitEntry(_Entry):
    split: Literal["train", "validation"]
    source: str | None
    """The validation set's source; None for train, which mixes all of them."""
    rows: int
    padding_tokens: int
    """End-of-document tokens that fill up the last row; they belong to no document and count in no loss."""
    sources: dict[str, SourceCount]
    shards: list[ShardEntry]

    @property
    def tokens(self) -> int:
        return sum(count.tokens for count in self.sources.values())

    @property
    def documents(self) -> int:
        return sum(count.documents for count in self.sources.values())

    @property
    def text_bytes(self) -> int:
        return sum(count.text_bytes for count in self.sources.values())


class InputEntry(_Entry):
    path: str
    bytes: int
    sha256: str


class WeightEntry(_Entry):
    """What a weight made of the training documents of a source of the recipe."""

    name: str
    weight: float
    weight_by: Literal["documents", "tokens"]
    documents_read: int
    tokens_read: int
    """End-of-document marks included, as below."""
    documents_written: int
    tokens_written: int


class Manifest(_Entry):
    schema_version: int = SCHEMA_VERSION
    tokenizer: TokenizerEntry
    seq_len: int
    """Tokens a row predicts; a row stores seq_len + 1."""
    token_dtype: Literal["uint16", "uint32"]
    splits: dict[str, SplitEntry]
    """Keyed "train" and "validation-SOURCE"; the key is the prefix of the shards' names."""
    rejected: dict[str, int]
    """Refused documents by reason; each stands in rejected.jsonl."""
    weights: list[WeightEntry] = []
    """Of sources whose weight is not 1."""
    inputs: list[InputEntry]
    settings_sha256: str
    """Hash of the recipe's tokenize section and seed: tells whether a finished stage is the one asked for."""
    settings: dict[str, Any] = {}
    """What `settings_sha256` is the hash of; lets a refusal name the setting that differs."""
    command: str
    version: str

    @property
    def train(self) -> SplitEntry:
        return self.splits["train"]

    @property
    def validation(self) -> dict[str, SplitEntry]:
        """Validation sets by source name."""
        return {split.source: split for split in self.splits.values() if split.source is not None}


def read_manifest(shards: Path) -> Manifest:
    """Read the manifest of a shards folder; `UserError` when there is none or it is not one."""
    path = shards / MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"{path} is missing: these shards are not finished (by `adaponder tokenize`), or were removed")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not a manifest of schema {SCHEMA_VERSION}: {where}: {first['msg']}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {manifest.schema_version}, this version reads {SCHEMA_VERSION}: tokenize again"
        )
    return manifest


def write_manifest(shards: Path, manifest: Manifest) -> None:
    """Write the manifest; the caller has made sure that every shard it names is on disk."""
    write_text(shards / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")


def manifest_hash(manifest: Manifest) -> str:
    """The data set's name in everything made from it: SHA-256 of what the manifest says of the data.

    Where the inputs lay, what the tokenizer was called and which command wrote the shards is left out, so that the
    same data made in another place is the same data: the order of the rows follows from this hash.
    """
    described = manifest.model_dump(mode="json", exclude={"command", "version", "settings", "settings_sha256"})
    del described["tokenizer"]["name"]
    for entry in described["inputs"]:
        del entry["path"]
    return sha256_json(described)
