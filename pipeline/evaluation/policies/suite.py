"""The suite `policies`: the learned policy and fixed ones at equal compute (method section 6; A figure 6)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.errors import UserError
from pipeline.evaluation.document_sums import interval
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.policies.found import Policies, PolicyPoint
from pipeline.evaluation.policies.keep_shares import policy_names
from pipeline.evaluation.policies.measure import LEARNED, Point, measure_points
from pipeline.evaluation.policies.plot import write_plot, write_table
from pipeline.evaluation.progress import rows_progress
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suite import Suite
from pipeline.model.flops import inference_work, mean_keys
from pipeline.recipe import Recipe

TRUNCATED = "truncated at"


class PolicySuite(Suite):
    """Every policy on the same rows: a curve of loss over compute for each, and a table at the learned policy's own."""

    name = "policies"
    found = Policies

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.evaluate.policies.model_dump(mode="json", exclude={"batch_rows"}) | {"seed": recipe.seed}

    def judge(self, subject: Subject, identity: Identity, output: Path) -> Policies:
        found = compare_policies(subject, identity)
        write_plot(output, found)
        write_table(output, found)
        return found

    def named(self, found: Policies, subject: Subject) -> dict[str, float]:
        named = {}
        for point in found.points:
            if point.at_equal_compute:
                key = point.policy.replace(" ", "_")
                named[f"{key}/loss"], named[f"{key}/mean_depth"] = point.loss, point.mean_depth
                if point.over_learned is not None:
                    named[f"{key}/over_learned"] = point.over_learned
            elif point.policy.startswith(TRUNCATED):
                named[f"{point.policy.replace(' ', '_')}/loss"] = point.loss
        return named

    def tables(self, found: Policies) -> list[Table]:
        table = Table(
            title=f"policies at equal compute, {found.identity.checkpoint}, {found.documents:,} documents",
            title_justify="left",
        )
        table.add_column("policy")
        for name in ("mean depth", "loss (nats)", "95 %", "over learned", "95 % "):
            table.add_column(name, justify="right")
        for point in sorted((each for each in found.points if each.at_equal_compute), key=lambda each: each.loss):
            over = "" if point.over_learned is None else f"{point.over_learned:+.4f}"
            between = point.over_learned_interval
            sure = "" if between is None else f"{between[0]:+.4f} to {between[1]:+.4f}"
            bounds = f"{point.interval[0]:.4f} to {point.interval[1]:.4f}"
            table.add_row(point.policy, f"{point.mean_depth:.4f}", f"{point.loss:.4f}", bounds, over, sure)
        return [table]


def compare_policies(subject: Subject, identity: Identity) -> Policies:
    """Run all policies over the first rows of every validation set.

    Raises `UserError` for a network in which nothing can halt, or shards without validation rows.
    """
    began = time.monotonic()
    model, section = subject.model, subject.recipe.evaluate.policies
    config = model.config
    if config.num_gates == 0 or not (config.kv_reuse and config.freeze_halted):
        raise UserError(
            "--suite policies: this network's tokens cannot halt (one pass, open gates, or halted tokens that change): "
            "there is nothing to compare"
        )
    rows = subject.validation_rows(section.rows_per_source)
    halts_before = config.halting
    config.halting = "skip"  # a checkpoint of a phase without halting has gates, too
    try:
        own, total = Point(LEARNED), sum(rows.values())
        with rows_progress("policies: the learned one", total) as advance:
            _, spent = measure_points(subject, [own], rows, section.batch_rows, advance)
        mean_depth = spent.mean_depth(own.name)
        points, equal = _points(section, mean_depth, config.max_passes)
        with rows_progress(f"policies: {len(points)} points", total) as advance:
            sums, spent = measure_points(subject, points, rows, section.batch_rows, advance)
    finally:
        config.halting = halts_before
    draws = sums.bootstrap(section.draws, subject.recipe.seed)
    losses, first = sums.losses(), draws[:, 0]
    found = []
    for number, point in enumerate(points):
        counts = spent.by_depth[point.name]
        active = (counts.flip(0).cumsum(0).flip(0).double() / spent.tokens).tolist()
        compared = number > 0 and point in equal
        work = inference_work(config, mean_keys(subject.manifest.seq_len), counts.tolist())
        found.append(
            PolicyPoint(
                policy=point.policy if point.depth is None else point.name,
                threshold=config.halt_threshold if number == 0 else point.threshold,
                at_equal_compute=point in equal,
                mean_depth=spent.mean_depth(point.name),
                active_shares=active,
                multiply_accumulates=work.total,
                loss=losses[point.name],
                interval=interval(draws[:, number]),
                over_learned=losses[point.name] - losses[points[0].name] if compared else None,
                over_learned_interval=interval(draws[:, number] - first) if compared else None,
            )
        )
    tokens, _ = sums.totals()
    return Policies(
        identity=identity,
        max_passes=config.max_passes,
        halt_threshold=config.halt_threshold,
        tokens=spent.tokens,
        documents=len(tokens),
        draws=section.draws,
        points=found,
        seconds=round(time.monotonic() - began, 3),
        device=subject.device_name,
    )


def _points(section: Any, mean_depth: float, max_passes: int) -> tuple[list[Point], list[Point]]:
    """All points, the learned policy first, and those among them that spend what it spends."""
    policies = policy_names(section.geometric_ratios)
    equal = [Point(LEARNED), *(Point(policy, mean_depth=mean_depth) for policy in policies)]
    curve = [Point(LEARNED, threshold=threshold) for threshold in section.thresholds]
    depths = [depth for depth in section.mean_depths if depth <= max_passes]
    curve += [Point(policy, mean_depth=depth) for policy in policies for depth in depths]
    curve += [Point(TRUNCATED, depth=depth) for depth in range(1, max_passes + 1)]
    return [*equal, *(point for point in curve if point not in equal)], equal
