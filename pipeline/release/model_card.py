"""README.md of a release: the model card. Every number in it comes from the run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.checkpoint import Checkpoint
from pipeline.data.manifest import Manifest, SplitEntry
from pipeline.evaluation.metrics import Metrics
from pipeline.model import AdaPonderConfig
from pipeline.recipe import Recipe
from pipeline.recipe_train import Phase
from pipeline.release.card_results import results
from pipeline.release.member import PAPER, method, summary
from pipeline.release.provenance import BaselineResult, without_folders
from pipeline.training.phases import describe_schedule

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Subject:
    """What the card is about."""

    recipe: Recipe
    """The recipe that trained the checkpoint."""
    checkpoint: Checkpoint
    config: AdaPonderConfig
    parameters: int
    manifest: Manifest
    metrics: Metrics | None
    """The evaluation of this checkpoint, where there was one."""
    baselines: Sequence[BaselineResult]
    """What its results stand beside."""
    license: str
    dtype: str
    transformers: str
    """Version the release was verified with."""
    figure: str | None = None
    """File beside the card that shows how many tokens have which depth."""


def model_card(subject: Subject) -> str:
    """The whole text, YAML front matter first."""
    sections = [
        f"# {subject.recipe.name}",
        _summary(subject),
        "## How to load it",
        _loading(subject),
        "## How it thinks",
        _method(subject),
        "## Training data",
        _data(subject.manifest),
        "## Training",
        _training(subject),
        "## Evaluation",
        results(subject.metrics, subject.baselines, subject.dtype, subject.figure),
        "## Intended use and limits",
        _limits(subject),
        "## Licence",
        f"The weights are released under {subject.license}. `provenance.json` holds the whole recipe, the versions of "
        "all software and the SHA-256 of every file.",
        "## How to cite",
        _citation(subject),
    ]
    return _front_matter(subject) + "\n\n".join(sections) + "\n"


def hub_backbone(recipe: Recipe) -> str | None:
    """The backbone's hub id; None for one given in numbers, or a folder that nobody else has."""
    backbone = recipe.model.backbone
    if not isinstance(backbone, str):
        return None
    return backbone if _HUB_ID.fullmatch(backbone) and not Path(backbone).exists() else None


def base_model(recipe: Recipe) -> str | None:
    """The hub id that the weights started from; None from scratch, or from a folder."""
    return hub_backbone(recipe) if recipe.model.start == "weights" else None


def _front_matter(subject: Subject) -> str:
    front: dict[str, Any] = {
        "license": subject.license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["adaponder", "gpt_neox", "adaptive-computation", "custom_code"],
    }
    base = base_model(subject.recipe)
    if base is not None:
        front["base_model"] = base
    return "---\n" + yaml.safe_dump(front, sort_keys=False) + "---\n\n"


def _summary(subject: Subject) -> str:
    config, state = subject.config, subject.checkpoint.state
    backbone = hub_backbone(subject.recipe)
    base = base_model(subject.recipe)
    if base is not None:
        origin = f"continued from [{base}](https://huggingface.co/{base})"
    elif subject.recipe.model.start == "weights":
        origin = "continued from an earlier checkpoint"
    else:
        origin = "trained from scratch" + (f" in the architecture of {backbone}" if backbone is not None else "")
    return (
        f"{summary(config)} It has {subject.parameters:,} parameters ({subject.dtype}): "
        f"a GPT-NeoX (Pythia) network of {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads and {config.vocab_size:,} vocabulary entries, with a context of up to "
        f"{config.max_tokens:,} tokens. It was {origin}; this is step {state.step:,}, after "
        f"{state.tokens:,} tokens of training."
    )


def _loading(subject: Subject) -> str:
    return (
        "The network's code lies beside the weights, so `trust_remote_code=True` is needed, for the tokenizer too: "
        f"transformers reads the configuration first. Verified with transformers {subject.transformers}.\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'path = "path/to/this/folder"\n'
        "tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)\n"
        'model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype="auto")\n\n'
        'inputs = tokenizer("Once upon a time", return_tensors="pt")\n'
        "text, depths = model.generate(**inputs, max_new_tokens=32, return_depths=True)\n"
        "print(tokenizer.decode(text[0]))\n"
        "print(depths[0])  # passes spent on each new token\n"
        "print(model(**inputs).depths)  # passes that each token of the prompt took\n"
        "```"
    )


def _method(subject: Subject) -> str:
    config = subject.config
    return method(config) if config.max_passes == 1 else f"{method(config)}\n\n{_decoding(config)}"


def _decoding(config: AdaPonderConfig) -> str:
    """How `generate()` works here."""
    if config.skips:
        return (
            "`generate()` decodes with a cache, and halted tokens are skipped: no later pass is computed for them, and "
            "the cache holds their keys and values once for each pass that they took. Set `model.config.halting = "
            '"masked"` to compute every pass for all tokens instead; the results are the same.'
        )
    return "`generate()` decodes with a cache of the keys and values of every pass; every token pays for all passes."


def _data(manifest: Manifest) -> str:
    lines = [
        "| set | source | documents | tokens | bytes of text |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for split in sorted(manifest.splits.values(), key=lambda split: (split.split, split.source or "")):
        lines += _split_lines(split)
    refused = sum(manifest.rejected.values())
    tokenizer = manifest.tokenizer
    lines += [
        "",
        f"Tokenizer: {without_folders(tokenizer.name)}, {tokenizer.vocab_size:,} entries. "
        f"Documents are joined by end-of-document tokens and cut into rows of {manifest.seq_len:,}; "
        f"{refused:,} documents were refused.",
    ]
    return "\n".join(lines)


def _split_lines(split: SplitEntry) -> list[str]:
    lines = [
        f"| {split.split} | {source} | {count.documents:,} | {count.tokens:,} | {count.text_bytes:,} |"
        for source, count in sorted(split.sources.items())
    ]
    if len(split.sources) > 1:
        lines.append(f"| {split.split} | all | {split.documents:,} | {split.tokens:,} | {split.text_bytes:,} |")
    return lines


def _training(subject: Subject) -> str:
    recipe, state = subject.recipe, subject.checkpoint.state
    ranks = "1 rank" if state.world_size == 1 else f"{state.world_size} ranks"
    train, optimizer = recipe.train, recipe.train.optimizer
    lines = [
        f"{state.step:,} of {train.steps:,} steps, {train.global_batch} x {recipe.tokenize.seq_len:,} tokens a step, "
        f"{state.precision}, {ranks}, DeepSpeed ZeRO stage {state.zero_stage}. AdamW: peak learning "
        f"rate {optimizer.peak_lr:g}, betas {optimizer.beta1:g} and {optimizer.beta2:g}, weight decay "
        f"{optimizer.weight_decay:g}, {describe_schedule(optimizer.schedule, train.steps)}, gradients clipped at "
        f"{optimizer.clip_grad_norm:g}. Seed {recipe.seed}.",
        "",
        "| phase | steps | trained | learning rate | halting | ponder loss |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    for phase in train.phases:
        halting = "on" if phase.halting else "off"
        trained = phase.train if isinstance(phase.train, str) else ", ".join(f"`{name}`" for name in phase.train)
        lines.append(
            f"| {phase.name} | {phase.steps:,} | {trained} | {_learning_rate(phase)} | {halting} | {_ponder(phase)} |"
        )
    return "\n".join(lines)


def _learning_rate(phase: Phase) -> str:
    """What the phase does otherwise than the whole run."""
    own = [f"peak {phase.peak_lr:g}"] if phase.peak_lr is not None else []
    if phase.schedule is not None:
        own.append(describe_schedule(phase.schedule, phase.steps))
    if phase.gate_lr_factor is not None:
        own.append(f"gates {phase.gate_lr_factor:g} times that")
    return ", ".join(own) or "as above"


def _ponder(phase: Phase) -> str:
    if phase.target_depth is not None:
        return f"lambda of at most {phase.ponder_weight:g}, adjusted to hold a mean depth of {phase.target_depth:g}"
    if not phase.ponder_weight or not phase.ponder_fraction:
        return "none"
    return f"{phase.ponder_weight:g} x the mean of the smallest {phase.ponder_fraction:.0%} of the gates"


def _citation(subject: Subject) -> str:
    identity = subject.checkpoint.state
    return (
        f"The method is AdaPonderLM's, arXiv:{PAPER.rpartition('/')[2]}. To say which weights: {subject.recipe.name}, "
        f"step {identity.step:,}, checkpoint {identity.save_id[:12]}, data {identity.manifest_hash[:12]}; "
        "`provenance.json` holds these in full."
    )


def _limits(subject: Subject) -> str:
    started = " and those of the model it started from" if subject.recipe.model.start == "weights" else ""
    return (
        "Meant for research on language models whose computation adapts to the token. It is a base model: it continues "
        "text, follows no instructions, and was not tuned to be safe or correct. It repeats what its training data "
        "holds, errors and prejudice included, and should not decide anything about people. It knows nothing but the "
        f"sources above{started}; texts longer than the {subject.manifest.seq_len:,} tokens of a training row are "
        "outside what it was trained on here. Depths say how much computation is needed, not how long it takes: in a "
        "batch a pass is paid for as long as any row is in it."
    )
