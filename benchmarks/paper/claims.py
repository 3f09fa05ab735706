"""What the paper finds, and what came out here: each claim with its numbers, and whether they bear it out."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.paper.members import (
    FROM_PONDER,
    FROM_STOCK,
    PONDER,
    REFERENCE,
    SHARED,
    TARGETS,
    VANILLA,
    VANILLA_TOKENS,
)
from benchmarks.paper.results import Result, Results, spread

LOSS_BOUND, PASSES_BOUND = 0.01, 0.95
"""AdaPonderLM's loss above PonderLM's, nats; its passes over PonderLM's."""
TARGET_BOUND, START_BOUND = 0.1, 0.02
LEAST_KEPT, MOST_KEPT = 0.01, 0.99
"""A gate that keeps fewer or more of the tokens that come to it decides nothing."""
SHALLOW_TOKENS = 100
"""A depth counts with so many tokens, or its mean loss is chance."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, or of this project, and what the numbers say."""

    text: str
    holds: bool
    numbers: str


def claims(results: Results) -> list[Claim]:
    """Those for which all members are there."""
    found = []
    for needed, judge in _CLAIMS:
        if all(member in results for member in needed):
            found.append(judge(results))
    return found


def _as_good_for_less(results: Results) -> Claim:
    above = results.above(REFERENCE, PONDER)
    shares = [
        one.mean_depth / two.mean_depth for one, two in zip(results.of(REFERENCE), results.of(PONDER), strict=True)
    ]
    return Claim(
        f"AdaPonderLM is within {LOSS_BOUND} nat of fixed-depth PonderLM at 5 % or more fewer passes",
        statistics.fmean(above) <= LOSS_BOUND and statistics.fmean(shares) <= PASSES_BOUND,
        f"loss {spread(above, sign='+')} nat, passes {spread(shares, 3)} of PonderLM's",
    )


def _better_policy(results: Results) -> Claim:
    over: dict[str, list[float]] = {"constant ratio": [], "uniform": []}
    for result in results.of(REFERENCE):
        for point in result.policies.points if result.policies else []:
            if point.at_equal_compute and point.policy in over and point.over_learned is not None:
                over[point.policy].append(point.over_learned)
    return Claim(
        "The learned policy is better than constant ratio and uniform at equal compute, beyond the spread",
        all(values and _beyond_spread(values) for values in over.values()),
        "; ".join(f"{name} {spread(values, sign='+')} nat above the learned one" for name, values in over.items()),
    )


def _deeper_is_harder(results: Results) -> Claim:
    found = [deeper_over_shallower(result) for result in results.of(REFERENCE)]
    differences = [difference for difference in found if difference is not None]
    numbers = (
        f"loss at the greatest depth above that at the least {spread(differences, sign='+')} nat"
        if differences
        else "all tokens have one depth"
    )
    if FROM_STOCK in results and (
        continued := [losses for each in results.of(FROM_STOCK) if (losses := by_depth(each))]
    ):
        over = [losses[-1] - losses[0] for losses in continued], [losses[-1] - min(losses) for losses in continued]
        numbers += (
            f"; {FROM_STOCK}: above that at the least {spread(over[0], sign='+')}, "
            f"above the lowest {spread(over[1], sign='+')}"
        )
    return Claim(
        "Deeper tokens are harder",
        len(differences) == len(results.seeds) and min(differences) > 0,
        numbers,
    )


def _better_than_vanilla(results: Results) -> Claim:
    over = {name: results.above(name, VANILLA) for name in (PONDER, REFERENCE)}
    return Claim(
        "PonderLM and AdaPonderLM are better than vanilla at equal tokens",
        all(_beyond_spread([-value for value in values]) for values in over.values()),
        "; ".join(f"{name} {spread(values, sign='+')} nat over vanilla" for name, values in over.items()),
    )


def _separate_gates(results: Results) -> Claim:
    own, shared = ([collapsed(result.lines) for result in results.of(name)] for name in (REFERENCE, SHARED))
    return Claim(
        "Separate gates are stable where the shared one is not",
        not any(own) and all(shared),
        f"runs in which a gate decides for none or for all of its tokens at the end: {sum(own)} of {len(own)} with "
        f"separate gates (mean depth {spread(results.each(REFERENCE, lambda each: each.mean_depth), 3)}), "
        f"{sum(shared)} of {len(shared)} with one ({spread(results.each(SHARED, lambda each: each.mean_depth), 3)})",
    )


def deeper_over_shallower(result: Result) -> float | None:
    """Loss of the deepest tokens above that of the shallowest, nats; None where all have one depth."""
    losses = by_depth(result)
    return losses[-1] - losses[0] if len(losses) > 1 else None


def by_depth(result: Result) -> list[float]:
    """Loss of the tokens of each depth that counts, nats, the least depth first."""
    return [each.loss for each in result.found.by_depth if each.tokens >= SHALLOW_TOKENS and each.loss is not None]


def collapsed(lines: list[dict[str, float]]) -> bool:
    """Whether all gates together keep nearly everything or nearly nothing at the training's end."""
    last = lines[-1]
    passes = sorted(name for name in last if name.startswith("depth/keep_ratio_pass_"))
    kept = last[passes[-1]]
    return not LEAST_KEPT <= kept <= MOST_KEPT


def _targets(results: Results) -> Claim:
    names = {depth: f"target-{depth:g}" for depth in TARGETS}
    realised = {depth: results.each(name, lambda each: each.mean_depth) for depth, name in names.items()}
    return Claim(
        f"A target depth is reached on validation to within {TARGET_BOUND}",
        all(abs(value - depth) <= TARGET_BOUND for depth, values in realised.items() for value in values),
        "; ".join(f"{depth:g}: {', '.join(f'{value:.3f}' for value in values)}" for depth, values in realised.items()),
    )


def _starts_where_it_was(results: Results) -> Claim:
    above: dict[str, list[float]] = {}
    for name, origin in ((FROM_STOCK, VANILLA), (FROM_PONDER, PONDER)):
        pairs = zip(results.of(name), results.of(origin), strict=True)
        above[name] = [one.at_start.loss - two.loss for one, two in pairs if one.at_start is not None]
    return Claim(
        f"Continued pretraining starts no worse than {START_BOUND} nat above the model that it starts from",
        all(values and max(values) <= START_BOUND for values in above.values()),
        "; ".join(f"{name} {spread(values, sign='+')} nat" for name, values in above.items()),
    )


def _continuing_pays(results: Results) -> Claim:
    above = results.above(FROM_STOCK, VANILLA_TOKENS)
    return Claim(
        "From stock weights it ends below vanilla continued for as many tokens",
        max(above) < 0,
        f"{spread(above, sign='+')} nat",
    )


def _beyond_spread(values: list[float]) -> bool:
    """Whether numbers of all seeds are above 0 by more than their standard deviation, and none is below."""
    wide = statistics.stdev(values) if len(values) > 1 else 0.0
    return min(values) > 0 and statistics.fmean(values) > wide


_CLAIMS: list[tuple[tuple[str, ...], Callable[[Results], Claim]]] = [
    ((REFERENCE, PONDER), _as_good_for_less),
    ((REFERENCE,), _better_policy),
    ((REFERENCE,), _deeper_is_harder),
    ((REFERENCE, PONDER, VANILLA), _better_than_vanilla),
    ((REFERENCE, SHARED), _separate_gates),
    (tuple(f"target-{depth:g}" for depth in TARGETS), _targets),
    ((FROM_STOCK, FROM_PONDER, VANILLA, PONDER), _starts_where_it_was),
    ((FROM_STOCK, VANILLA_TOKENS), _continuing_pays),
]
