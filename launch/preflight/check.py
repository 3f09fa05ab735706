"""What a check is, what it works from and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.recipe import Recipe
from pipeline.recipe_cluster import ClusterSection
from pipeline.recipe_preflight import CheckName, PreflightSection
from pipeline.run_folder import RunFolder

if TYPE_CHECKING:
    from launch.preflight.meeting import Meeting

Verdict = Literal["ok", "warning", "failed", "skipped"]


_GRAVITY: tuple[Verdict, ...] = ("skipped", "ok", "warning", "failed")


@dataclass(frozen=True)
class Place:
    """A rank and where it runs."""

    rank: int
    node: int
    """From 0 on, in the order of ranks."""
    local_rank: int
    host: str
    """What people call the node: its host name, with the node's number where several share one."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


@dataclass(frozen=True)
class Told:
    """What a rank saw."""

    place: Place
    seen: Any
    """JSON."""


@dataclass(frozen=True)
class Finding:
    """What a check says of the cluster, a node or a rank."""

    verdict: Verdict
    message: str
    """One line: what, where, and what to do."""
    figures: dict[str, Any] = field(default_factory=dict)
    """JSON, for machines."""
    user: bool = False
    """Where it failed: whether it is the user's mistake, and nothing is wrong with the cluster."""


@dataclass(frozen=True)
class Context:
    """What the checks work from."""

    recipe: Recipe
    folder: RunFolder
    meeting: Meeting
    gpus_per_node: int | Literal["ranks"] | None
    """How many a node has to have; ranks: one for each; None: the same, where it has any."""
    tokenized: bool
    """Whether the shards have to be there already."""
    mock_step: Callable[[Recipe], dict[str, Any]] | None = None
    """Takes one step of the recipe's training with made-up rows; collective. None where no ranks are started."""

    @property
    def settings(self) -> PreflightSection:
        return self.recipe.cluster.preflight

    @property
    def cluster(self) -> ClusterSection:
        return self.recipe.cluster


@dataclass(frozen=True)
class Check:
    """One thing that is looked at."""

    name: CheckName
    look: Callable[[Context], Any]
    """Runs on every rank; returns JSON. `UserError`, `WorldError` and OSError are findings, other errors are bugs."""
    judge: Callable[[Context, Sequence[Told]], list[Finding]]
    """Of what all ranks saw, in their order; runs on rank 0."""
    collective: bool = False
    """Whether the ranks compute together: then all of them have to be sound, and one that fails ends it for all."""


@dataclass(frozen=True)
class Checked:
    """A check that was made."""

    name: CheckName
    seconds: float
    findings: list[Finding]

    @property
    def verdict(self) -> Verdict:
        """The gravest of its findings."""
        gravest: Verdict = "skipped" if self.findings else "ok"
        for finding in self.findings:
            if _GRAVITY.index(finding.verdict) > _GRAVITY.index(gravest):
                gravest = finding.verdict
        return gravest

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "verdict": self.verdict, "seconds": round(self.seconds, 3)} | {
            "findings": [asdict(finding) for finding in self.findings]
        }


def first_of_nodes(told: Sequence[Told]) -> list[Told]:
    """What the first rank of each node saw."""
    return list({each.place.node: each for each in reversed(told)}.values())[::-1]


def named(places: Sequence[Place], most: int = 8) -> str:
    """Ranks in words: "rank 3 on n2, rank 5 on n3"."""
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(map(str, places[:most])) + more
