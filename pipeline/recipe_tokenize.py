"""The recipe's tokenize section: which documents become rows of tokens, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.recipe_section import NonNegativeInt, PositiveFloat, PositiveInt, Section, Share


class _Weighted(Section):
    weight: PositiveFloat = 1.0
    """How often each training document is taken: 2 takes all twice, 0.3 a seeded three in ten, 1.5 all once and half of
    them again."""
    weight_by: Literal["documents", "tokens"] = "documents"
    """What the part of the weight behind the point is exact in."""


class JsonLinesSource(_Weighted):
    """Documents as JSON lines, in the Pile's own layout by default: .jsonl.zst, .jsonl.gz or .jsonl."""

    kind: Literal["jsonl"]
    train: Annotated[list[str], Field(min_length=1)]
    """Files or glob patterns; read in sorted order."""
    validation: list[str] = []
    """Files or glob patterns of the given validation set; empty: `validation_share` cuts one."""
    validation_share: Share = 0.0
    """Seeded share of the training documents kept for validation; 0 where `validation` names files."""
    text_field: str = "text"
    """Where a record keeps its text; dots descend."""
    source_field: str = "meta.pile_set_name"
    """Where a record names its source; dots descend."""
    name: str = "text"
    """Source name of records that carry none."""

    @model_validator(mode="after")
    def _one_validation(self) -> JsonLinesSource:
        if bool(self.validation) == (self.validation_share > 0):
            raise ValueError("give either validation files or a validation_share above 0, not both and not neither")
        return self


class TextFolderSource(_Weighted):
    """A folder of text or code files, one document a file."""

    kind: Literal["text"]
    name: str
    """Source name in the manifest and in the evaluation."""
    path: str
    """The folder; {python_stdlib} stands for the standard library of the Python that runs."""
    include: Annotated[list[str], Field(min_length=1)] = ["**/*.txt"]
    """Glob patterns below the folder."""
    exclude: list[str] = []
    """Glob patterns below the folder that are left out."""
    max_bytes: PositiveInt | Literal["all"] = "all"
    """Stop after as many bytes of text: a prefix of the files in a seeded order."""
    validation_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    """Seeded share of the documents kept for validation."""


class DatasetSource(_Weighted):
    """Parquet, Arrow, JSON or CSV files, or a data set of the hub, read in streams through `datasets`."""

    kind: Literal["dataset"]
    name: str
    """Source name of records that carry none."""
    path: str
    """`parquet`, `arrow`, `json` or `csv` for `files` here; a folder; or a data set's hub id."""
    files: list[str] = []
    """Files or glob patterns of `path`'s format; json and csv may be .gz, and .tsv is csv separated by tabulators."""
    validation_files: list[str] = []
    """Files or glob patterns of the given validation set."""
    subset: str = ""
    """A hub data set's configuration; empty: its default."""
    revision: str = ""
    """A hub data set's commit, tag or branch; empty: its main branch. The manifest says which commit was read."""
    train_split: str = "train"
    """A hub data set's split to train on."""
    validation_split: str = ""
    """A hub data set's split to validate on; empty: `validation_share` cuts one."""
    validation_share: Share = 0.0
    """Seeded share of the training documents kept for validation; 0 where a validation set is given."""
    text_field: str = "text"
    """Column of the text; dots descend."""
    source_field: str = ""
    """Column that names a record's source; dots descend; empty: all are `name`."""

    @model_validator(mode="after")
    def _one_validation(self) -> DatasetSource:
        given = bool(self.validation_files) + bool(self.validation_split) + (self.validation_share > 0)
        if given != 1:
            raise ValueError("give one of validation_files, validation_split and a validation_share above 0")
        local = self.path in ("parquet", "arrow", "json", "csv")
        if local and not self.files:
            raise ValueError(f"path: {self.path} reads local files: name them in files")
        if local and self.validation_split:
            raise ValueError("validation_split is a hub data set's: name validation_files, or a validation_share")
        if not local and (self.files or self.validation_files):
            raise ValueError("files are read where path is parquet, arrow, json or csv")
        return self


class TokenFilesSource(_Weighted):
    """Documents that are tokens of the recipe's tokenizer: flat .npy or .bin files, Megatron's .bin and .idx, or .arrow
    files of packed rows."""

    kind: Literal["tokens"]
    name: str
    """Source name in the manifest and in the evaluation."""
    train: Annotated[list[str], Field(min_length=1)]
    """Files or glob patterns; read in sorted order. A .bin with an .idx of the same name beside it is Megatron's."""
    validation: list[str] = []
    """Files or glob patterns of the given validation set; empty: `validation_share` cuts one."""
    validation_share: Share = 0.0
    """Seeded share of the training documents kept for validation; 0 where `validation` names files."""
    token_dtype: Literal["uint16", "uint32"] = "uint16"
    """What a .bin without .idx holds; the other formats say it themselves."""
    ids_field: str = "input_ids"
    """Column of an .arrow file that holds the ids; its rows are joined, and cut at the end-of-document token."""

    @model_validator(mode="after")
    def _one_validation(self) -> TokenFilesSource:
        if bool(self.validation) == (self.validation_share > 0):
            raise ValueError("give either validation files or a validation_share above 0, not both and not neither")
        return self


Source = Annotated[JsonLinesSource | TextFolderSource | DatasetSource | TokenFilesSource, Field(discriminator="kind")]


class CleanSection(Section):
    """What is left out of the documents; all of it is counted by reason in the manifest."""

    remove_duplicates: bool = False
    """Keep only the first of documents whose texts are equal, over all sources in reading order. Documents of a given
    validation set count before all others."""
    min_bytes: NonNegativeInt = 0
    """Leave out shorter texts."""
    max_bytes: NonNegativeInt = 0
    """Texts longer than this are `too_long`; 0: none is."""
    too_long: Literal["split", "drop"] = "split"
    """split: into documents of `max_bytes` at most, between words where there are any; drop: leave them out."""
    contamination_files: list[str] = []
    """Evaluation sets (.jsonl, .jsonl.gz, .jsonl.zst; every string in a record counts): training documents that share
    `contamination_words` words in a row with one are left out."""
    contamination_words: PositiveInt = 13
    """Length of the word sequences compared, without case and punctuation."""

    @model_validator(mode="after")
    def _room_for_texts(self) -> CleanSection:
        if 0 < self.max_bytes < 4:
            raise ValueError("max_bytes is 0 or at least 4: a single character takes up to four bytes")
        if 0 < self.max_bytes < self.min_bytes:
            raise ValueError("min_bytes is above max_bytes: no text would be left whole")
        return self


class TrainedTokenizer(Section):
    """A byte-level BPE trained on the run's own training documents with GPT-NeoX's settings."""

    train_vocab_size: Annotated[int, Field(ge=258)]
    """Entries, the two special tokens and the 256 bytes included."""
    sample_bytes: PositiveInt = 8_000_000
    """How much text the merges are learned from: the first training documents of every source, before cleaning."""


class TokenizeSection(Section):
    """How documents become rows of tokens."""

    tokenizer: str | TrainedTokenizer
    """A folder, a tokenizer.json or a hub id; or {train_vocab_size: n}."""
    end_of_document: str = "<|endoftext|>"
    """The token that joins documents."""
    seq_len: PositiveInt
    """Tokens a row predicts; rows store seq_len + 1."""
    sources: Annotated[list[Source], Field(min_length=1)]
    clean: CleanSection = CleanSection()
    rows_per_chunk: PositiveInt = 128
    """Rows in one WebDataset sample."""
    shard_bytes: Annotated[int, Field(ge=1 << 16)] = 256 << 20
    """Size at which a shard is closed and the next one opened."""
    part_bytes: PositiveInt | Literal["auto"] = "auto"
    """Text in one part of the work, which is done or not done as a whole; auto: a 64th of all text, but at least 4 MiB
    and at most 4 GiB."""
