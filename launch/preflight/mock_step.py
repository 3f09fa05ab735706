"""Does a step of this training fit and run? At full depth, with the recipe's micro batch, on rows made up here.

What takes it is the training itself, handed in by who calls the preflight: nothing here knows the trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.preflight.check import Check, Context, Finding, Told, named

TIGHT_SHARE = 0.95
"""Of a GPU's memory: above it, a little more of anything ends the training."""


def look(context: Context) -> dict[str, Any]:
    assert context.mock_step is not None
    return context.mock_step(context.recipe)


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    if wrong := [each.place for each in told if not each.seen["finite"]]:
        return [Finding("failed", f"the loss of a step with made-up rows is not finite on {named(wrong)}")]
    findings = []
    if tight := [each.place for each in told if _share(each.seen) > TIGHT_SHARE]:
        share = max(_share(each.seen) for each in told)
        findings.append(
            Finding(
                "warning",
                f"the step takes up to {100 * share:.0f} % of the memory of {named(tight)}: a smaller "
                "train.micro_batch or another activation_checkpointing leaves room",
            )
        )
    highest = max(told, key=lambda each: each.seen["peak_bytes"])
    seconds = max(each.seen["seconds"] for each in told)
    train = context.recipe.train
    text = (
        f"micro batch {train.micro_batch} at full depth under {train.strategy}: {seconds:.2f} s, at most "
        f"{highest.seen['peak_bytes'] / 2**30:.2f} GiB on {highest.place}"
    )
    figures = {str(each.place): each.seen for each in told}
    return [*findings, Finding("ok", text, figures)]


def _share(seen: dict[str, Any]) -> float:
    """Of the device's memory; 0 on a CPU, whose memory is another check's."""
    return seen["peak_bytes"] / seen["device_bytes"] if seen["device_bytes"] else 0.0


CHECK = Check("mock_step", look, judge, collective=True)
