"""The recipe: one YAML file that holds a whole run, checked before anything starts.

Every stage takes its numbers from here and nowhere else. Units are in the names. How a file becomes a `Recipe`, and
how its mistakes are reported, is in `pipeline.recipe_reader`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.durable import sha256_json
from pipeline.recipe_section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Share
from pipeline.recipe_tokenize import TokenizeSection, TrainedTokenizer


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
    gate_start: Literal["open", "closed"] = "open"
    """open: the first pass feeds back fully (from scratch, from PonderLM); closed: nearly the stock network."""
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
    def gate_bias(self) -> float:
        """Start of the gates' output bias (method section 4): +3 from scratch, +4 from PonderLM, -4 closed."""
        if self.gate_start == "closed":
            return -4.0
        return 3.0 if self.start == "scratch" else 4.0

    @model_validator(mode="after")
    def _scratch_has_numbers(self) -> ModelSection:
        if self.start == "weights" and isinstance(self.backbone, Architecture):
            raise ValueError("start: weights needs a backbone checkpoint (hub id or folder), not an architecture")
        return self


class Phase(Section):
    """A stretch of training with one loss and one set of trained parameters (method sections 3 and 4)."""

    name: str
    steps: PositiveInt
    train: Literal["all", "gates"] = "all"
    """gates: the backbone is frozen."""
    halting: bool
    """False: gates weigh the update, but no token halts."""
    ponder_weight: NonNegativeFloat = 0.0
    """lambda."""
    ponder_fraction: Share = 0.0
    """k_max: the share of smallest gate values that the ponder loss takes."""
    ramp_start_step: NonNegativeInt = 0
    """S0, counted from the phase's first step."""
    ramp_steps: NonNegativeInt = 0
    """S1 - S0: steps over which k_s rises from 0 to k_max."""


class OptimizerSection(Section):
    """AdamW; weight decay on matrices only."""

    peak_lr: PositiveFloat
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    warmup_share: Share = 0.02
    """Share of all steps over which the LR rises linearly."""
    floor_share: Share = 0.1
    """Where the cosine ends, as a share of peak_lr."""
    clip_grad_norm: PositiveFloat = 1.0
    gate_lr_factor: PositiveFloat = 1.0
    """LR of the gates over LR of everything else."""


class TrainSection(Section):
    """How the network is trained, and on how many ranks."""

    strategy: str = "zero1"
    """A file of ds_configs/ by name, or the path of a DeepSpeed JSON file."""
    precision: Literal["bf16", "fp32"] = "bf16"
    ranks: PositiveInt | Literal["auto"] = "auto"
    """Processes on this machine; auto: as many as there are GPUs, two where there is none."""
    micro_batch: PositiveInt
    """Rows a rank runs at once."""
    global_batch: PositiveInt
    """Rows a step; micro_batch x ranks x accumulation."""
    phases: Annotated[list[Phase], Field(min_length=1)]
    optimizer: OptimizerSection
    checkpoint_every_steps: PositiveInt = 1000
    log_every_steps: PositiveInt = 1
    timeout_seconds: PositiveInt = 600
    """How long a rank waits for the others before the run fails."""
    activation_checkpointing: Literal["none", "activation", "mlp", "layer", "pass"] = "activation"
    """What backward computes again instead of keeping it: nothing, each MLP's activation function, the inside of each
    MLP, each layer, or each pass. Like the fields below it changes memory and time, and results by rounding alone; it
    may change in mid-run."""
    vocabulary_chunk_tokens: NonNegativeInt = 256
    """Tokens whose logits are held at once, in mixture and loss; 0: those of all."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """transformers' attention implementation; passes that skip halted tokens take SDPA whatever stands here."""
    skip_halted: bool = False
    """True computes each pass for its active tokens only, in the phases with halting; needs model.kv_reuse and
    model.freeze_halted."""
    compile_layers: bool = False
    """torch.compile of each layer; passes that skip halted tokens are not compiled."""

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


class EvaluateSection(Section):
    """How a checkpoint is judged."""

    rows_per_source: PositiveInt | Literal["all"] = "all"
    """Validation rows a source; the first ones."""
    batch_rows: PositiveInt = 8
    sample_prompt: str = "The "
    """Start of the text that `adaponder run` generates at its end."""
    sample_tokens: NonNegativeInt = 64


class TrackSection(Section):
    """MLflow; the store is MLFLOW_TRACKING_URI, or mlflow.db in the folder of all runs."""

    experiment: str = "adaponder"


class ReleaseSection(Section):
    """What is published."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the released weights."""
    license: str = "apache-2.0"
    """SPDX name on the model card."""


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

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        problems = []
        backbone = self.model.backbone
        if isinstance(backbone, Architecture):
            if self.tokenize.seq_len > backbone.max_position_embeddings:
                problems.append(
                    f"tokenize.seq_len {self.tokenize.seq_len} is beyond the backbone's "
                    f"max_position_embeddings {backbone.max_position_embeddings}: shorten the rows"
                )
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

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data, every default filled in."""
        return self.model_dump(mode="json")

    def hash(self) -> str:
        """SHA-256 of the resolved recipe; it stands in everything the run makes."""
        return sha256_json(self.resolved())

    def tokenize_hash(self) -> str:
        """SHA-256 of what decides the shards: the tokenize section and the seed."""
        return sha256_json({"seed": self.seed, "tokenize": self.tokenize.model_dump(mode="json")})
