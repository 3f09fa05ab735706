"""The members of the studies: the family of the paper's tables, what its figures vary, and the study of stability."""

from __future__ import annotations

from typing import Any

from benchmarks.paper.study import Member, Phases

REFERENCE = "adaponder"
VANILLA, PONDER, LOOP, PAUSE, SHARED = "vanilla", "ponder", "loop", "pause", "shared-gate"
TARGETS = (3.0, 3.4, 3.8)
FULL_SUITES = ("validation", "depth", "policies")


def _named(members: list[Member], name: str) -> Member:
    return next(member for member in members if member.name == name)


def _joined(**settings: Any) -> Phases:
    """One phase as long as all of the shared ones together, in which nothing halts."""

    def phases(shared: list[dict[str, Any]]) -> list[dict[str, Any]]:
        steps = sum(phase["steps"] for phase in shared)
        return [{"name": "all", "steps": steps, "halting": False, **settings}]

    return phases


def _last(**settings: Any) -> Phases:
    """The shared phases with other settings in the last one."""
    return lambda shared: [*shared[:-1], {**shared[-1], **settings}]


def _target(depth: float, **settings: Any) -> Phases:
    return _last(**{"ponder_weight": 0.004, "target_depth": depth, "gate_lr_factor": None, **settings})


def _continued(shared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Further steps of a fixed-depth network: as many as the last shared phase has."""
    return [{"name": "continued", "steps": shared[-1]["steps"], "halting": False}]


def _gates_first(shared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gates alone for a sixth of the last phase's steps, the backbone frozen; then everything together."""
    steps = shared[-1]["steps"]
    return [
        {"name": "gates", "steps": steps // 6, "train": "gates", "halting": False},
        {**shared[-1], "steps": steps - steps // 6},
    ]


def _opening_first(shared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Half of the last phase's steps in which nothing halts, so that gates that start closed may open; then halting.

    The gates learn as fast as the rest: a slower one stays closed for as long as these trainings are.
    """
    half = shared[-1]["steps"] // 2
    return [
        {"name": "opening", "steps": half, "halting": False, "gate_lr_factor": 1.0},
        {
            **shared[-1],
            "gate_lr_factor": 1.0,
            "steps": shared[-1]["steps"] - half,
            "ramp_steps": shared[-1]["ramp_steps"] // 2,
        },
    ]


CONTINUED_LR, CONTINUED_SCHEDULE = 0.6, {"kind": "cosine", "warmup_share": 0.05}
"""Of the LR from scratch, where the paper takes a tenth of a far longer training's; one schedule over all phases, as
that which they are compared with has."""

FAMILY = [
    Member(VANILLA, "vanilla (one pass)", {"max_passes": 1}, _joined()),
    Member(PONDER, "PonderLM (fixed depth)", {"gating": "open"}, _joined()),
    Member(REFERENCE, "AdaPonderLM", suites=FULL_SUITES),
    Member(LOOP, "Loop Transformer", {"gating": "open", "feedback": "hidden_state"}, _joined()),
    Member(PAUSE, "pause tokens (3)", {"max_passes": 1, "pause_tokens": 3}, _joined()),
    Member(SHARED, "one shared gate", {"shared_gate": True}),
    Member("no-bottom-k", "without bottom-K", phases=_last(ponder_fraction=1.0, ramp_steps=0), branch_of=REFERENCE),
    Member("no-kv-reuse", "without K/V reuse", {"kv_reuse": False}, branch_of=REFERENCE),
    Member("kv-reuse-only", "K/V reuse only", {"freeze_halted": False}, branch_of=REFERENCE),
    Member("last-gate", "gate on the last pass", {"gate_on_last_pass": True}),
    Member("logit-loss", "ponder loss on logits", {"ponder_loss_on": "logit"}, branch_of=REFERENCE),
]

LAMBDAS, FRACTIONS = (0.05, 0.1, 0.2), (0.05, 0.1, 0.2)
"""Figure 3; the middle ones are the paper's and the shared recipe's."""
LAMBDA_AND_K = [
    *(
        Member(f"lambda-{weight:g}", f"lambda {weight:g}", phases=_last(ponder_weight=weight), branch_of=REFERENCE)
        for weight in LAMBDAS
        if weight != LAMBDAS[1]
    ),
    *(
        Member(f"k-{share:g}", f"k {share:g}", phases=_last(ponder_fraction=share), branch_of=REFERENCE)
        for share in FRACTIONS
        if share != FRACTIONS[1]
    ),
]

CONTROLLED = [
    Member(f"target-{depth:g}", f"target depth {depth:g}", phases=_target(depth), branch_of=REFERENCE)
    for depth in TARGETS
]

FROM_STOCK, FROM_PONDER = "from-vanilla", "from-ponder"
VANILLA_TOKENS, VANILLA_COMPUTE = "vanilla-continued", "vanilla-continued-compute"
CONTINUING = [
    Member(
        VANILLA_TOKENS,
        "vanilla, as many tokens",
        {"max_passes": 1},
        _continued,
        CONTINUED_LR,
        CONTINUED_SCHEDULE,
        weights_of=VANILLA,
    ),
    Member(
        VANILLA_COMPUTE,
        "vanilla, as much compute",
        {"max_passes": 1},
        _continued,
        CONTINUED_LR,
        CONTINUED_SCHEDULE,
        weights_of=VANILLA,
        compute_of=_named(FAMILY, REFERENCE),
    ),
    Member(
        FROM_STOCK,
        "AdaPonderLM from vanilla",
        {"gate_start": "closed"},
        _opening_first,
        CONTINUED_LR,
        CONTINUED_SCHEDULE,
        weights_of=VANILLA,
        judged_at_start=True,
    ),
    Member(
        FROM_PONDER,
        "AdaPonderLM from PonderLM",
        {"gating": "learned", "gate_start": "open"},
        _gates_first,
        CONTINUED_LR,
        CONTINUED_SCHEDULE,
        weights_of=PONDER,
        judged_at_start=True,
    ),
]

PAPER = [*FAMILY, *LAMBDA_AND_K, *CONTROLLED, *CONTINUING]


def _halting_after(share: float) -> Phases:
    """The same number of steps, of which tokens may halt after that share of the first phase; 0: from the first on."""

    def phases(shared: list[dict[str, Any]]) -> list[dict[str, Any]]:
        steps = round(share * shared[0]["steps"])
        halting = {**shared[-1], "steps": sum(phase["steps"] for phase in shared) - steps}
        return [*([{**shared[0], "steps": steps}] if steps else []), halting]

    return phases


def _ramp(times: int) -> Phases:
    return lambda shared: _last(ramp_steps=times * shared[-1]["ramp_steps"])(shared)


def _gates_of_first_phase(factor: float) -> Phases:
    return lambda shared: [{**shared[0], "gate_lr_factor": factor}, *shared[1:]]


STEERED = 3.4
"""The target depth at which the controller's own settings are varied."""

STABILITY = [
    _named(FAMILY, VANILLA),
    Member(REFERENCE, "as shared by all"),
    *(Member(f"bias-{bias:g}", f"gates start at logit {bias:g}", {"gate_start": bias}) for bias in (0.0, 1.0, 5.0)),
    *(
        Member(f"spread-{std:g}", f"output weights of gates start at {std:g}", {"gate_output_std": std})
        for std in (0.01, 0.1)
    ),
    Member("halting-at-once", "tokens may halt from the first step on", phases=_halting_after(0)),
    Member("halting-early", "tokens may halt after a third of the first phase", phases=_halting_after(1 / 3)),
    Member("ramp-none", "no ramp", phases=_ramp(0), branch_of=REFERENCE),
    Member("ramp-long", "a ramp three times as long", phases=_ramp(3), branch_of=REFERENCE),
    *(
        Member(
            f"first-gate-lr-{factor:g}",
            f"LR of gates {factor:g} of the others' before tokens halt",
            phases=_gates_of_first_phase(factor),
        )
        for factor in (0.01, 0.2, 1.0)
    ),
    *(
        Member(
            f"gate-lr-{factor:g}",
            f"LR of gates {factor:g} of the others' while tokens halt",
            phases=_last(gate_lr_factor=factor),
            branch_of=REFERENCE,
        )
        for factor in (0.05, 0.2, 1.0)
    ),
    _named(CONTROLLED, f"target-{STEERED:g}"),
    *(
        Member(
            f"target-{name}-{value:g}",
            f"target depth {STEERED:g}, {title.format(value)}",
            phases=_target(STEERED, **{field: value}),
            branch_of=REFERENCE,
        )
        for name, title, field, values in (
            ("weight", "lambda at most {:g}", "ponder_weight", (0.001, 0.016)),
            ("width", "at its most from {:g} passes away", "target_width", (0.1, 0.9)),
        )
        for value in values
    ),
    Member(
        "target-gate-lr",
        f"target depth {STEERED:g}, LR of gates as without a target",
        phases=_last(ponder_weight=0.004, target_depth=STEERED),
        branch_of=REFERENCE,
    ),
]
"""One setting at a time; the shared recipe has another value of each."""

STUDIES = {"paper": PAPER, "stability": STABILITY}
