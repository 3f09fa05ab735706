"""The report of a study: README.md, its figures and results.json in one folder."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.paper.claims import claims, collapsed, deeper_over_shallower
from benchmarks.paper.figures import write_figures
from benchmarks.paper.members import (
    CONTINUED_LR,
    CONTINUING,
    FAMILY,
    LAMBDA_AND_K,
    REFERENCE,
    STABILITY,
    VANILLA,
    VANILLA_TOKENS,
)
from benchmarks.paper.results import Results, as_data, held_depths, spread
from benchmarks.paper.study import Member, Study
from pipeline.console import console
from pipeline.durable import write_text
from pipeline.versions import installed_versions

COMPUTE = (
    "Compute is counted in multiply-accumulates, head, mixtures and gates included, over those of vanilla: halted "
    "tokens are skipped at inference and not in training."
)


def write_report(study: Study, folder: Path) -> None:
    """Write the report of what was trained and judged; the same results give the same files, but for the machine's."""
    results = Results(study)
    folder.mkdir(parents=True, exist_ok=True)
    figures = write_figures(results, folder)
    write_text(folder / "results.json", json.dumps(as_data(results), indent=1) + "\n")
    parts = [
        f"# The paper's comparisons in small: {Path(study.recipe).stem}",
        _what(study, results),
        "## What the paper finds, and what came out",
        _claims(results),
        *_section("## The family (the paper's table 1)", _table(results, FAMILY), FAMILY[1:2], results),
        *_section("## One setting at a time", _stability(results), STABILITY[2:], results),
        *_section("## Lambda and k", _table(results, [_reference(), *LAMBDA_AND_K]), LAMBDA_AND_K, results),
        *_section("## Depth held to a target", _held(results), _steered(results), results),
        *_section("## Continued pretraining", _continued(results), CONTINUING, results),
        "## Figures",
        *(f"![{title}]({name})" for name, title in figures.items()),
        "## Where it was made",
        _made(),
    ]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")
    console.print(f"report: {folder / 'README.md'}")


def _section(title: str, text: str, members: Sequence[Member], results: Results) -> list[str]:
    return [title, text] if any(member.name in results for member in members) else []


def _reference() -> Member:
    return next(member for member in FAMILY if member.name == REFERENCE)


def _what(study: Study, results: Results) -> str:
    first = next(iter(study.trainings))
    recipe, tokens = study.recipe_of(first), results.of(first.member.name)[0].found.tokens
    train, backbone = study.data_recipe.train, recipe.model.backbone
    size = (
        backbone
        if isinstance(backbone, str)
        else f"{backbone.hidden_size} wide, {backbone.num_hidden_layers} deep, {backbone.vocab_size} tokens"
    )
    steps = " + ".join(str(phase.steps) for phase in train.phases)
    return (
        f"Backbone: {size}. {steps} steps of {study.data_recipe.tokens_per_step:,} tokens "
        f"({train.steps * study.data_recipe.tokens_per_step:,} in all), the same rows in the same order for every "
        f"member of a seed; seeds {', '.join(map(str, study.seeds))}. Every number is a mean over seeds ± their "
        f"standard deviation, on {tokens:,} validation tokens. Loss is in nats a token."
    )


def _claims(results: Results) -> str:
    rows = [
        f"| {claim.text} | {'holds' if claim.holds else '**does not hold**'} | {claim.numbers} |"
        for claim in claims(results)
    ]
    return "\n".join(["| claim | here | numbers |", "| --- | --- | --- |", *rows])


def _table(results: Results, members: Sequence[Member]) -> str:
    lines = [
        "| member | loss | over vanilla | perplexity | mean depth | inference compute | training compute |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for member in members:
        if member.name not in results:
            continue
        base = results.each(VANILLA, lambda each: each.training_work) if VANILLA in results else None
        work = results.each(member.name, lambda each: each.training_work)
        over = spread(results.above(member.name, VANILLA), sign="+") if VANILLA in results else ""
        cells = [
            member.title,
            spread(results.each(member.name, lambda each: each.loss)),
            over if member.name != VANILLA else "",
            spread(results.each(member.name, lambda each: math.exp(each.loss)), 2),
            spread(results.each(member.name, lambda each: each.mean_depth), 3),
            f"{spread(results.each(member.name, lambda each: each.inference_work), 2)} x",
            f"{work[0] / base[0]:.2f} x" if base else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", COMPUTE])


def _stability(results: Results) -> str:
    lines = [
        "| setting | loss | mean depth | loss of the deepest above the shallowest | runs whose gates decide nothing |",
        "| --- | --- | --- | --- | --- |",
    ]
    for member in STABILITY:
        if member.name in results and member.name != VANILLA:
            found = results.of(member.name)
            steps = [step for each in found if (step := deeper_over_shallower(each)) is not None]
            cells = [
                member.title,
                spread(results.each(member.name, lambda each: each.loss)),
                spread(results.each(member.name, lambda each: each.mean_depth), 3),
                spread(steps, sign="+") if steps else "all tokens have one depth",
                f"{sum(collapsed(each.lines) for each in found)} of {len(found)}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    model, train = results.study.data_recipe.model, results.study.data_recipe.train
    before, after = (train.gate_lr_factor(phase) for phase in (train.phases[0], train.phases[-1]))
    told = (
        f"Shared by all: gates start at logit {model.gate_bias:g} with output weights of {model.gate_output_std:g}; "
        f"tokens may halt after {train.phases[0].steps:,} of {train.steps:,} steps, over a ramp of "
        f"{train.phases[-1].ramp_steps:,}; the gates' LR is {before:g} of the others' before that and {after:g} after."
    )
    return "\n".join([*lines, "", told])


def _steered(results: Results) -> list[Member]:
    """Members that hold a depth."""
    return [
        member
        for member in results.study.members
        if results.of(member.name)[0].recipe.train.phases[-1].target_depth is not None
    ]


def _held(results: Results) -> str:
    lines = [
        "| training | depth on validation, seed by seed | depth while training | loss | inference compute |",
        "| --- | --- | --- | --- | --- |",
    ]
    for member in _steered(results):
        found = results.of(member.name)
        taken = [held_depths(each) for each in found]
        mean, wide = (statistics.fmean(map(of_one, taken)) for of_one in (statistics.fmean, statistics.pstdev))
        cells = [
            member.title,
            ", ".join(f"{each.mean_depth:.3f}" for each in found),
            f"{mean:.3f}, {wide:.3f} from step to step",
            spread([each.loss for each in found]),
            f"{spread([each.inference_work for each in found], 2)} x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    told = f"While training: the lines of the last quarter of the steps. {COMPUTE}"
    return "\n".join([*lines, "", told])


def _continued(results: Results) -> str:
    lines = ["| training | starts at | ends at | mean depth | training compute |", "| --- | --- | --- | --- | --- |"]
    base = results.of(VANILLA_TOKENS)[0].training_work if VANILLA_TOKENS in results else None
    for member in CONTINUING:
        if member.name not in results:
            continue
        origin = member.weights_of or ""
        started = [each.at_start for each in results.of(member.name)]
        losses = (
            [each.loss for each in started if each is not None]
            if member.judged_at_start
            else results.each(origin, lambda each: each.loss)
        )
        ends = spread(results.each(member.name, lambda each: each.loss))
        depth = spread(results.each(member.name, lambda each: each.mean_depth), 3)
        work = f"{results.of(member.name)[0].training_work / base:.2f} x" if base else ""
        lines.append(f"| {member.title} | {spread(losses)} | {ends} | {depth} | {work} |")
    told = (
        f"Peak LR {CONTINUED_LR:g} of that from scratch. From PonderLM the gates are trained alone for a sixth of the "
        "steps, then everything; from vanilla, where they start nearly closed, everything, and nothing halts in the "
        "first half. Training compute is that of these steps alone, over that of vanilla with as many tokens."
    )
    return "\n".join([*lines, "", told])


def _made() -> str:
    versions = installed_versions()
    names = ", ".join(f"{name} {versions[name]}" for name in ("torch", "deepspeed", "transformers") if name in versions)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {os.cpu_count()} cores"
    return f"{device}; Python {platform.python_version()}, {names}."


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    for line in told.read_text(encoding="utf-8").splitlines() if told.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
