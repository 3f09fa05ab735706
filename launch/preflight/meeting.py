"""How ranks tell each other what they saw before they can compute together: through the store of the job.

Every message is JSON under a key of its own; rank 0 collects and publishes. A rank that stays silent is named, where
a collective would only hang.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launch.preflight.check import Place, Told, named
from pipeline.errors import WorldError
from pipeline.host_name import host_name

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_GRACE_SECONDS = 30.0
"""That ranks wait longer than rank 0 does, which names the silent ones."""


@dataclass(frozen=True)
class Meeting:
    """The ranks of a training, or one process for itself."""

    places: list[Place]
    rank: int
    seconds: float
    """How long a rank may be silent."""
    store: Store | None = None
    """None: one process for itself."""

    @property
    def me(self) -> Place:
        return self.places[self.rank]

    @property
    def nodes(self) -> int:
        return len({place.node for place in self.places})

    def tell(self, subject: str, seen: Any) -> list[Told]:
        """What every rank tells about `subject`, in the order of ranks, on every rank.

        Raises `WorldError` on every rank that names those who have not answered within `seconds`.
        """
        if self.store is None:
            return [Told(self.me, seen)]
        content = _gather(self.store, subject, seen, self.rank, len(self.places), self.seconds)
        if silent := [place for place, said in zip(self.places, content, strict=True) if said is None]:
            raise WorldError(f"{named(silent)} did not answer within {self.seconds:.0f} s ({subject})")
        return [Told(place, json.loads(said)) for place, said in zip(self.places, content, strict=True) if said]

    def from_rank_0(self, subject: str, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.store is None:
            return value
        if self.rank == 0:
            self.store.set(subject, json.dumps(value))
        return json.loads(_wait(self.store, subject, self.seconds + _GRACE_SECONDS))

    def part(self, seconds: float = 10.0) -> None:
        """Leave; rank 0, whose process may hold the store, last."""
        if self.store is None:
            return
        if self.rank:
            self.store.set(f"gone/{self.rank}", "")
            return
        deadline = time.monotonic() + seconds
        with suppress(WorldError):
            for other in range(1, len(self.places)):
                _wait(self.store, f"gone/{other}", max(0.05, deadline - time.monotonic()))


def alone() -> Meeting:
    """One process for itself."""
    return Meeting([Place(0, 0, 0, host_name())], 0, 0.0)


def meet(seconds: float, environment: Mapping[str, str]) -> Meeting:
    """Meet the other ranks of the job that torchrun or DeepSpeed's launcher has started.

    Raises `WorldError` where not all of them come within `seconds`.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    limit = timedelta(seconds=seconds)
    try:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=limit)))
    except Exception as error:  # torch raises several kinds, each with a page of text
        address = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        raise WorldError(
            f"{host_name()} does not reach the first node at {address} within {seconds:.0f} s "
            f"({str(error).splitlines()[0][:200]}): a firewall, or a name that leads elsewhere"
        ) from error
    store = PrefixStore("preflight", store)
    here = {"host": host_name(), "local_rank": int(environment.get("LOCAL_RANK", 0))}
    said = _gather(store, "meeting", here, rank, world_size, seconds)
    if silent := [str(number) for number, content in enumerate(said) if content is None]:
        came = ", ".join(f"rank {number} on {json.loads(text)['host']}" for number, text in enumerate(said) if text)
        raise WorldError(f"rank {', '.join(silent)} did not come within {seconds:.0f} s; here are {came}")
    return Meeting(places_of([json.loads(content) for content in said if content]), rank, seconds, store)


def places_of(ranks: list[dict[str, Any]]) -> list[Place]:
    """Where ranks run, of each rank's host and local rank: a node begins with local rank 0."""
    nodes: list[int] = []
    for rank in ranks:
        nodes.append(0 if not nodes else nodes[-1] + (rank["local_rank"] == 0))
    first_hosts = {node: rank["host"] for node, rank in reversed(list(zip(nodes, ranks, strict=True)))}
    shared = Counter(first_hosts.values())
    return [
        Place(
            number,
            node,
            rank["local_rank"],
            rank["host"] if shared[rank["host"]] == 1 else f"{rank['host']} (node {node})",
        )
        for number, (node, rank) in enumerate(zip(nodes, ranks, strict=True))
    ]


def _gather(store: Store, subject: str, seen: Any, rank: int, world_size: int, seconds: float) -> list[str | None]:
    """Every rank's message as text; None for those who have not answered in time."""
    store.set(f"{subject}/{rank}", json.dumps(seen))
    everything = f"{subject}/all"
    if rank == 0:
        deadline = time.monotonic() + seconds
        said: list[str | None] = []
        for other in range(world_size):
            try:
                said.append(_wait(store, f"{subject}/{other}", max(0.05, deadline - time.monotonic())))
            except WorldError:
                said.append(None)
        store.set(everything, json.dumps(said))
        return said
    return json.loads(_wait(store, everything, seconds + _GRACE_SECONDS))


def _wait(store: Store, key: str, seconds: float) -> str:
    from torch.distributed import DistStoreError

    try:
        store.wait([key], timedelta(seconds=seconds))
    except (DistStoreError, RuntimeError) as error:
        raise WorldError(f"rank 0 said nothing of {key} within {seconds:.0f} s, or is gone") from error
    return store.get(key).decode()
