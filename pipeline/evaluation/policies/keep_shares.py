"""Keep shares: of all tokens, the share that is active in pass 2, 3, ..., K under a fixed policy.

The mean depth is 1 plus their sum, so policies of the same mean depth spend the same number of active tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNIFORM = "uniform"
CONSTANT_RATIO = "constant ratio"


def policy_names(geometric_ratios: Sequence[float]) -> list[str]:
    """All fixed policies, in the order in which they are told."""
    return [UNIFORM, CONSTANT_RATIO, *(geometric_name(ratio) for ratio in geometric_ratios)]


def geometric_name(ratio: float) -> str:
    """What the geometric policy of that ratio is called."""
    return f"geometric {ratio:g}"


def keep_shares(policy: str, mean_depth: float, max_passes: int) -> list[float]:
    """The K - 1 shares of `policy` that spend `mean_depth` passes a token; none is larger than the one before.

    uniform: the same share in every further pass (tokens take one pass or all). constant ratio: of what was active the
    same ratio goes on after each pass. geometric q: each share is q times the one before, as far as no share is above
    1: what a pass cannot take goes to the next ones. Raises ValueError for a mean depth beyond 1..K.
    """
    further, wanted = max_passes - 1, mean_depth - 1
    if not 0 <= wanted <= further:
        raise ValueError(f"a mean depth of {mean_depth} is not within 1 to {max_passes}")
    if policy == UNIFORM:
        return [wanted / further] * further if further else []
    if policy == CONSTANT_RATIO:
        return _solved(lambda ratio: [ratio**number for number in range(1, further + 1)], wanted, 1.0)
    ratio = float(policy.removeprefix("geometric "))
    # From a first share of so much on every pass is full.
    most = ratio ** -(further - 1) if further else 1.0
    return _solved(lambda first: [min(1.0, first * ratio**number) for number in range(further)], wanted, most)


def _solved(shares_of: Callable[[float], list[float]], wanted: float, most: float) -> list[float]:
    """The shares whose sum is `wanted`; the sum rises with what they are made of, between 0 and `most`."""
    low, high = 0.0, most
    for _ in range(200):
        middle = (low + high) / 2
        if sum(shares_of(middle)) < wanted:
            low = middle
        else:
            high = middle
    return shares_of(high)
