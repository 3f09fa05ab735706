"""The recipe's train section: phases, optimizer, LR schedules, and how training is spread and computed.

`pipeline.recipe` puts the whole recipe together, turns lengths in tokens into steps, and checks what more than one
section decides.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from pipeline.recipe_guards import GuardsSection
from pipeline.recipe_section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Share

DEFAULT_WARMUP_SHARE = 0.02


class Warmup(Section):
    """What every schedule has: the LR rises linearly to its peak."""

    warmup_share: Share | None = None
    """Share of the steps over which the LR rises; 0.02 where warmup_steps is not given either."""
    warmup_steps: NonNegativeInt | None = None
    """The same in steps."""

    @model_validator(mode="after")
    def _given_once(self) -> Warmup:
        if self.warmup_share is not None and self.warmup_steps is not None:
            raise ValueError("give warmup_share or warmup_steps, not both")
        return self

    def warmup(self, total_steps: int) -> int:
        """Steps over which the LR rises, of `total_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round((DEFAULT_WARMUP_SHARE if self.warmup_share is None else self.warmup_share) * total_steps)

    def decay(self, total_steps: int) -> int:
        """Steps over which the LR falls, of `total_steps`; the last ones."""
        return 0


class Constant(Warmup):
    """At its peak after the warm-up."""

    kind: Literal["constant"] = "constant"


class Cosine(Warmup):
    """Half a cosine from the peak, at the warm-up's end, to the floor, at the last step."""

    kind: Literal["cosine"] = "cosine"
    floor_share: Share = 0.1
    """Where the LR ends, as a share of the peak."""

    def decay(self, total_steps: int) -> int:
        return max(0, total_steps - self.warmup(total_steps))


class Linear(Warmup):
    """A straight line from the peak, at the warm-up's end, to the floor, at the last step."""

    kind: Literal["linear"] = "linear"
    floor_share: Share = 0.1
    """Where the LR ends, as a share of the peak."""

    def decay(self, total_steps: int) -> int:
        return max(0, total_steps - self.warmup(total_steps))


class WarmupStableDecay(Warmup):
    """At its peak after the warm-up, then down a straight line to the floor, at the last step."""

    kind: Literal["wsd"] = "wsd"
    decay_share: Share = 0.2
    """Share of the steps over which the LR falls."""
    floor_share: Share = 0.1
    """Where the LR ends, as a share of the peak."""

    def decay(self, total_steps: int) -> int:
        return round(self.decay_share * total_steps)


Schedule = Annotated[Cosine | Linear | WarmupStableDecay | Constant, Field(discriminator="kind")]
NamePattern = Annotated[str, StringConstraints(min_length=1, pattern=r"^\S+$")]


class Phase(Section):
    """A stretch of training with one loss and one set of trained parameters (method sections 3 and 4)."""

    name: str
    steps: NonNegativeInt = 0
    """Length in optimizer steps."""
    tokens: NonNegativeInt = 0
    """Length in tokens, in the place of steps; the resolved recipe has it in whole steps, rounded up."""
    train: Literal["all", "gates"] | Annotated[list[NamePattern], Field(min_length=1)] = "all"
    """all; gates: the backbone is frozen; or a list of patterns (* ? [abc]) of the names of the parameters to train:
    ["gpt_neox.layers.5.*", "gates.*"]."""
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
    target_depth: Annotated[float, Field(ge=1.0)] | None = None
    """Mean passes a token that the phase reaches over its ramp, and holds: lambda then opens and closes the
    ponder_fraction of the gates that is nearest to the threshold (docs/method.md), and ponder_weight, 0.004 say, is the
    most that it is. None: lambda stays as it is."""
    target_width: PositiveFloat = 0.3
    """Passes away from the target at which lambda is at its most; nearer by it is less, in proportion."""
    peak_lr: PositiveFloat | None = None
    """The phase's own, in the place of the optimizer's."""
    schedule: Schedule | None = None
    """The phase's own, from its first step to its last; without it the optimizer's goes on, which is over all steps."""
    gate_lr_factor: PositiveFloat | None = None
    """The phase's own, in the place of the optimizer's."""

    @model_validator(mode="after")
    def _one_length(self) -> Phase:
        if bool(self.steps) == bool(self.tokens):
            raise ValueError("give the phase's length in steps or in tokens" + (", not both" if self.steps else ""))
        return self

    @model_validator(mode="after")
    def _target_can_be_reached(self) -> Phase:
        if self.target_depth is None:
            return self
        if not self.halting:
            raise ValueError("target_depth needs halting: true, or no token stops before the last pass")
        if not self.ponder_weight or not self.ponder_fraction:
            raise ValueError("target_depth needs ponder_weight and ponder_fraction above 0 (0.004 and 0.1, say)")
        return self

    @property
    def trained(self) -> str:
        """The set of trained parameters in one word or line, the same for the same set: all, gates, or the patterns."""
        return self.train if isinstance(self.train, str) else " ".join(sorted(set(self.train)))

    def in_steps(self, tokens_per_step: int) -> Phase:
        """The phase with its length in whole steps."""
        if not self.tokens:
            return self
        return self.model_copy(update={"steps": -(-self.tokens // tokens_per_step), "tokens": 0})


class OptimizerSection(Section):
    """AdamW; weight decay on matrices only."""

    peak_lr: PositiveFloat
    schedule: Schedule = Cosine()
    """How the LR goes over all steps of the run."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    clip_grad_norm: PositiveFloat = 1.0
    gate_lr_factor: PositiveFloat = 1.0
    """LR of the gates over LR of everything else."""


class TrainSection(Section):
    """How the network is trained, and on how many ranks."""

    strategy: str = "zero1"
    """A file of ds_configs/ by name, or the path of a DeepSpeed JSON file."""
    nvme_path: str = ""
    """Folder on a local NVMe disk of every host, for strategies that keep states there."""
    precision: Literal["bf16", "fp32"] = "bf16"
    grad_accum_dtype: Literal["bf16", "fp32"] | None = None
    """Precision in which gradients of the micro-batches are added up; none given: that of the training."""
    ranks: PositiveInt | Literal["auto"] = "auto"
    """Processes on this machine; auto: as many as there are GPUs, two where there is none."""
    micro_batch: PositiveInt
    """Rows a rank runs at once. May change in mid-run, and so may ranks and strategy (docs/training.md)."""
    global_batch: PositiveInt
    """Rows a step; micro_batch x ranks x accumulation."""
    phases: Annotated[list[Phase], Field(min_length=1)]
    optimizer: OptimizerSection
    checkpoint_every_steps: PositiveInt = 1000
    checkpoint_log_spaced: bool = False
    """True saves after 1, 2, 4, ..., 512 steps too, as Pythia does; they stay."""
    keep_last: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    """How many of the newest checkpoints stay, two at least. Step 0 and the ends of phases stay besides, and what is
    being evaluated or released until that is done; all: nothing is ever removed."""
    keep_every_steps: NonNegativeInt = 0
    """Every checkpoint at a multiple of this stays besides; 0: none by this rule."""
    save_in_background: bool = True
    """True: training goes on while a checkpoint is written, from a copy in host memory as large as the rank's part of
    it, which stays taken between saves. False: training waits, and needs no copy."""
    verify_on_resume: Literal["hashes", "sizes"] = "hashes"
    """How closely a checkpoint is looked at before training continues from it: hashes reads each file once more, each
    rank its own, at more than 1 GB a second a core; sizes finds what was cut short, not a flipped byte."""
    log_every_steps: PositiveInt = 1
    rank_times_every_steps: NonNegativeInt = 50
    """How often it is measured how long each rank works on a step, without what it waits for the others; such a step
    takes a little longer, since nothing overlaps in it. 0: never."""
    slow_rank_ratio: Annotated[float, Field(gt=1.0)] = 1.3
    """A rank that works so many times the ranks' median, five times measured in a row, is named."""
    timeout_seconds: PositiveInt = 600
    """How long a rank waits for the others before the run fails."""
    lost_host_seconds: NonNegativeInt = 30
    """On more than one host: how long a host may not answer, as far as its kernel is asked, before all ranks end and
    name it. What its ranks are busy with does not matter. 0: only timeout_seconds and hang_minutes count."""
    stop_after_seconds: NonNegativeInt = 0
    """Saves and ends, to be started again (exit code 75), so long after the attempt began; what a save takes is kept
    back. 0: no limit."""
    hang_minutes: NonNegativeFloat = 10.0
    """Without a step for so long, or for nine tenths of timeout_seconds, every rank writes its stacks into its log and
    the run fails. First steps and saves may take six times as long. 0: never."""
    cross_check_every_steps: NonNegativeInt = 0
    """How often the ranks compare recipe, versions, place in the data and weights; 0: at the start only, which they do
    in any case."""
    guards: GuardsSection = GuardsSection()
    """What is done when a step looks wrong."""
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

    def gate_lr_factor(self, phase: Phase) -> float:
        """LR of the gates over LR of everything else in a phase."""
        return self.optimizer.gate_lr_factor if phase.gate_lr_factor is None else phase.gate_lr_factor

    def phase_problems(self) -> list[str]:
        """What contradicts what in the phases and their schedules, each problem with its place; lengths in steps."""
        problems = []
        schedules = [("optimizer", self.optimizer.schedule, self.steps)]
        schedules += [(f"phases.{i}", phase.schedule, phase.steps) for i, phase in enumerate(self.phases)]
        for place, schedule, total in schedules:
            if schedule is None:
                continue
            warmup, decay = schedule.warmup(total), schedule.decay(total)
            if warmup + decay > total:
                problems.append(
                    f"train.{place}.schedule: {warmup} steps of warm-up and {decay} of decay are more than its {total}"
                )
        return problems
