from __future__ import annotations

import threading
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from torch._C._distributed_c10d import TCPStore

from launch.preflight.meeting import Meeting, alone, places_of
from launch.preflight.network import reach_next_node
from launch.preflight.slow_ranks import phases
from pipeline.errors import WorldError


def meetings(world_size: int, seconds: float) -> list[Meeting]:
    """One for each rank, each with its own connection to a real store."""
    first = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
    stores = [first] + [
        TCPStore("127.0.0.1", first.port, None, False, timedelta(seconds=20)) for _ in range(world_size - 1)
    ]
    places = places_of([{"host": "n", "local_rank": 0}] * world_size)
    return [Meeting(places, rank, seconds, store) for rank, store in enumerate(stores)]


def on_ranks(world_size: int, do, present) -> dict[int, object]:
    """What `do(meeting)` returns or raises on each rank that is there."""
    found: dict[int, object] = {}

    def run(meeting: Meeting) -> None:
        try:
            found[meeting.rank] = do(meeting)
        except WorldError as error:
            found[meeting.rank] = error

    # The first meeting's store has to outlive the others'.
    all_ = meetings(world_size, 2.0)
    threads = [threading.Thread(target=run, args=(all_[rank],)) for rank in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_all_ranks_hear_the_same_in_the_order_of_ranks():
    found = on_ranks(3, lambda meeting: [each.seen for each in meeting.tell("a", {"rank": meeting.rank})], range(3))
    assert list(found.values()) == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3


def test_what_rank_0_says_reaches_all():
    found = on_ranks(3, lambda meeting: meeting.from_rank_0("b", 7 + meeting.rank), range(3))
    assert found == dict.fromkeys(range(3), 7)


def test_a_silent_rank_is_named_on_every_other():
    found = on_ranks(3, lambda meeting: meeting.tell("c", None), [0, 2])
    assert sorted(found) == [0, 2]
    for error in found.values():
        assert "rank 1 on n (node 1) did not answer within 2 s" in str(error)


def test_one_process_for_itself_hears_itself():
    assert [each.seen for each in alone().tell("d", 1)] == [1]
    assert alone().from_rank_0("e", 2) == 2


def test_nodes_begin_with_local_rank_0_and_shared_names_are_told_apart():
    ranks = [{"host": host, "local_rank": local} for host in ("a", "b", "b") for local in (0, 1)]
    assert [str(place) for place in places_of(ranks)] == [
        *("rank 0 on a", "rank 1 on a", "rank 2 on b (node 1)", "rank 3 on b (node 1)"),
        *("rank 4 on b (node 2)", "rank 5 on b (node 2)"),
    ]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_every_rank_exchanges_with_both_neighbours_once_and_with_one_at_a_time(sizes):
    places = places_of([{"host": "n", "local_rank": local} for size in sizes for local in range(size)])
    met: dict[int, list[int]] = {place.rank: [] for place in places}
    for partners in phases(places):
        for rank, partner in enumerate(partners):
            if partner is not None:
                assert partner != rank
                assert partners[partner] == rank
                met[rank].append(partner)
    regular = len(sizes) > 1 and len(set(sizes)) == 1
    ring = len(sizes) if regular else len(places)
    wanted = {1: 0, 2: 1}.get(ring, 2)
    assert all(len(partners) == len(set(partners)) == wanted for partners in met.values())
    if regular:
        # Between nodes alone: the links that a network card can slow down.
        nodes = {place.rank: place.node for place in places}
        assert all(nodes[rank] != nodes[other] for rank, partners in met.items() for other in partners)


def test_nodes_are_asked_at_the_address_that_they_give():
    # The second node listens where the others cannot get to: at an address of its own, which is none of this machine's.
    addresses = ["127.0.0.1", "192.0.2.1", "127.0.0.1"]
    found = on_ranks(3, lambda meeting: reach_next_node(meeting, addresses[meeting.rank]), range(3))
    assert found == {0: False, 1: True, 2: True}
