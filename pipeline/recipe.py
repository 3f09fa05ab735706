"""The recipe: one YAML file that holds a whole run, checked before anything starts.

Every stage takes its numbers from here and nowhere else. Units are in the names. How a file becomes a `Recipe`, and
how its mistakes are reported, is in `pipeline.recipe_reader`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from pipeline.durable import sha256_json
from pipeline.recipe_cluster import ClusterSection
from pipeline.recipe_evaluate import EvaluateSection
from pipeline.recipe_section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Share
from pipeline.recipe_tokenize import TokenizeSection, TrainedTokenizer
from pipeline.recipe_train import TrainSection


class DataSection(Section):
    """Where the rows lie."""

    shards: str = "shards"
    """Folder of shards; relative to the run's folder, absolute for shards made before, or an fsspec URL (s3://...)."""
    shuffle: Literal["rows", "chunks", "none"] = "rows"
    """Order of the training rows, a new one in every epoch: a permutation of all rows; of chunks, with their rows in
    order; or none, as they were written."""
    cache: str = ""
    """Folder on a local disk where shards of a URL are kept; empty: adaponder-shards-USER in the system's temporary
    folder. Ranks of one machine share it."""
    cache_bytes: PositiveInt = 100 << 30
    """Size to which the cache is cut: the shard used longest ago goes first."""

    @field_validator("shards")
    @classmethod
    def _no_secrets(cls, shards: str) -> str:
        # The recipe is published: by MLflow, in a release's provenance, in messages.
        parts = shards.split("://")
        if len(parts) > 1 and ("?" in shards or any("@" in part.partition("/")[0] for part in parts[1:])):
            raise ValueError(
                "a URL with a user name, a password or a query would be published with the recipe: leave them out, "
                "and give them to fsspec by its configuration (~/.config/fsspec, FSSPEC_...) or the store's own "
                "variables (AWS_...)"
            )
        return shards


class Architecture(Section):
    """A GPT-NeoX (Pythia) network in numbers."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt = 2048
    rotary_pct: Share = 0.25
    use_parallel_residual: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> Architecture:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}"
            )
        return self


class ModelSection(Section):
    """The network: a GPT-NeoX backbone and how it ponders (method sections 1, 2 and 5)."""

    backbone: str | Architecture
    """A GPT-NeoX checkpoint by hub id or folder, or the architecture in numbers."""
    start: Literal["scratch", "weights"]
    """scratch: the backbone gives the architecture only; weights: its weights too (GPT-NeoX's or an AdaPonder's)."""
    max_passes: PositiveInt = 4
    """K: how often the transformer runs at most (A section 3)."""
    halt_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 1e-4
    """tau: a token halts when its gate falls below it."""
    gating: Literal["learned", "open"] = "learned"
    """learned: gates weigh what is fed back, and may halt tokens; open: s = 1, no gates, every token takes every pass
    (PonderLM; docs/method.md lists the family)."""
    feedback: Literal["mixture", "hidden_state"] = "mixture"
    """What a pass hands to the next: a mixture of embeddings, or the last layer's output itself (the Loop Transformer,
    which needs gating open)."""
    pause_tokens: NonNegativeInt = 0
    """Learned pause tokens after every token, the last of which predicts the next token; needs max_passes 1. A row
    takes seq_len * (1 + pause_tokens) positions."""
    shared_gate: bool = False
    """True: one gate for all passes, in the place of one for each; it collapses (A 4.4.3)."""
    gate_start: Literal["open", "closed"] | FiniteFloat = "open"
    """open: the first pass feeds back fully (from scratch, from PonderLM); closed: nearly the stock network; or the
    gates' first logit itself."""
    gate_output_std: NonNegativeFloat = 1e-3
    """Start of the gates' output weights: how far tokens' first logits lie apart."""
    gate_on_last_pass: bool = False
    """True puts a gate after the last pass too; it can only serve the ponder loss."""
    ponder_loss_on: Literal["probability", "logit"] = "probability"
    """What the ponder loss pushes down: s or the gate's logit."""
    kv_reuse: bool = True
    """A halted token's keys and values are those of its last active pass."""
    freeze_halted: bool = True
    """A halted token's hidden state stays that of its last active pass."""
    scale_embeds: bool = False
    """PonderLM's sqrt(hidden_size) on the embedding and on the mixture; false for stock Pythia weights."""
    initial_embed_scale: PositiveFloat = 1.0
    """A further factor on the token embedding alone; PonderLM takes 3 from 410M on."""
    mixture_top_k: NonNegativeInt = 0
    """How many of the likeliest tokens enter the mixture, their probabilities made to sum to 1; 0: the whole vocabulary
    (A, P1)."""

    @property
    def positions_per_token(self) -> int:
        """Of a row, with pauses."""
        return 1 + self.pause_tokens

    @property
    def has_gates(self) -> bool:
        return self.gating == "learned" and self.max_passes > 1

    @property
    def gate_bias(self) -> float:
        """Start of the gates' output bias (method section 4): +3 from scratch, +4 from PonderLM, -4 closed."""
        if isinstance(self.gate_start, float):
            return self.gate_start
        if self.gate_start == "closed":
            return -4.0
        return 3.0 if self.start == "scratch" else 4.0

    @model_validator(mode="after")
    def _scratch_has_numbers(self) -> ModelSection:
        if self.start == "weights" and isinstance(self.backbone, Architecture):
            raise ValueError("start: weights needs a backbone checkpoint (hub id or folder), not an architecture")
        return self


class TrackSection(Section):
    """MLflow; the store is MLFLOW_TRACKING_URI, or mlflow.db in the folder of all runs."""

    experiment: str = "adaponder"
    system_metrics_every_seconds: NonNegativeFloat = 30.0
    """How often every node of a training measures its processors, memory, disk, network and GPUs; 0: never. GPUs need
    the package nvidia-ml-py (AMD's: pyrsmi)."""


class ReleaseSection(Section):
    """What is published."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the released weights."""
    license: str = "apache-2.0"
    """SPDX name on the model card."""
    max_shard_bytes: PositiveInt = 5_000_000_000
    """Size of a file of weights; larger ones are cut between tensors, with an index."""
    register_model: bool = True
    """Whether a release becomes a version of the registered model `name` in MLflow, with the alias candidate. The
    registry keeps a copy of the weights: false where its store has no room for that."""


class Recipe(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The run's folder below the folder of all runs."""
    seed: NonNegativeInt = 0
    """Everything random follows from it."""
    tokenize: TokenizeSection
    data: DataSection = DataSection()
    model: ModelSection
    train: TrainSection
    evaluate: EvaluateSection = EvaluateSection()
    track: TrackSection = TrackSection()
    release: ReleaseSection = ReleaseSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        # The resolved recipe knows steps alone. Sections are frozen for their readers; here they are still being made.
        phases = [phase.in_steps(self.tokens_per_step) for phase in self.train.phases]
        object.__setattr__(self, "train", self.train.model_copy(update={"phases": phases}))
        problems = self.train.phase_problems()
        gateless = "model.gating open" if self.model.gating == "open" else "model.max_passes 1"
        for i, phase in enumerate(phases):
            if phase.train == "gates" and not self.model.has_gates:
                problems.append(f"train.phases.{i}.train gates: with {gateless} there is no gate to train")
            if phase.halting and self.model.gating == "open":
                problems.append(f"train.phases.{i}.halting: with model.gating open no token can halt: set it to false")
            if phase.target_depth is not None and phase.target_depth > self.model.max_passes:
                problems.append(
                    f"train.phases.{i}.target_depth {phase.target_depth:g} is more than model.max_passes "
                    f"{self.model.max_passes}"
                )
        if self.train.precision == "fp32" and self.train.grad_accum_dtype == "bf16":
            problems.append("train.grad_accum_dtype bf16 is for train.precision bf16; this is fp32")
        backbone = self.model.backbone
        if isinstance(backbone, Architecture):
            if problem := self.position_problem(backbone.max_position_embeddings):
                problems.append(problem)
            wanted = self.tokenize.tokenizer
            if isinstance(wanted, TrainedTokenizer) and wanted.train_vocab_size > backbone.vocab_size:
                problems.append(
                    f"tokenize.tokenizer.train_vocab_size {wanted.train_vocab_size} is larger than "
                    f"model.backbone.vocab_size {backbone.vocab_size}"
                )
            if self.model.mixture_top_k > backbone.vocab_size:
                problems.append(
                    f"model.mixture_top_k {self.model.mixture_top_k} is larger than "
                    f"model.backbone.vocab_size {backbone.vocab_size}"
                )
        if self.train.skip_halted and not (self.model.kv_reuse and self.model.freeze_halted):
            problems.append(
                "train.skip_halted needs model.kv_reuse and model.freeze_halted, which leave a halted token as it is"
            )
        if self.train.global_batch % self.train.micro_batch:
            problems.append(
                f"train.global_batch {self.train.global_batch} is not divisible by "
                f"train.micro_batch {self.train.micro_batch}"
            )
        elif isinstance(self.train.ranks, int) and self.train.global_batch % (
            self.train.ranks * self.train.micro_batch
        ):
            problems.append(
                f"train.global_batch {self.train.global_batch} is not divisible by train.ranks {self.train.ranks} "
                f"x train.micro_batch {self.train.micro_batch}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def position_problem(self, max_position_embeddings: int) -> str | None:
        """Why a row has more positions than the backbone; None where it has not."""
        pauses = self.model.pause_tokens
        if self.tokenize.seq_len * self.model.positions_per_token <= max_position_embeddings:
            return None
        with_pauses = f" x {1 + pauses} positions a token (model.pause_tokens {pauses})" if pauses else ""
        return (
            f"tokenize.seq_len {self.tokenize.seq_len}{with_pauses} is beyond the backbone's max_position_embeddings "
            f"{max_position_embeddings}: shorten the rows"
        )

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted in an optimizer step."""
        return self.train.global_batch * self.tokenize.seq_len

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data, every default filled in."""
        return self.model_dump(mode="json")

    def hash(self) -> str:
        """SHA-256 of the resolved recipe; it stands in everything the run makes."""
        return sha256_json(self.resolved())

    def tokenize_hash(self) -> str:
        """SHA-256 of what decides the shards: the tokenize section and the seed."""
        return sha256_json({"seed": self.seed, "tokenize": self.tokenize.model_dump(mode="json")})
