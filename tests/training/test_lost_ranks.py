"""The line that names who is gone."""

from __future__ import annotations

from pipeline.training.lost_ranks import Peer, ended_line, interface_without_link, silent_line


def test_a_host_is_named_once_with_its_ranks():
    peers = [Peer(rank, f"host{rank // 8}") for rank in (15, 8, 9, 10, 11, 12)]
    line = silent_line(peers, 30, "host0", None)
    assert line.startswith(
        "no answer from host1 (ranks 8, 9, 10, 11 and 2 more) for 30 s, asked from host0: the host, or the network to "
        "it, is gone; the same command continues"
    )


def test_many_hosts_are_counted():
    line = silent_line([Peer(rank, f"host{rank}") for rank in range(1, 8)], 30, "host0", None)
    assert "host1 (rank 1), host2 (rank 2), host3 (rank 3), host4 (rank 4) and 3 more for 30 s" in line
    assert "the hosts, or the network, are gone" in line


def test_a_host_whose_own_link_is_down_names_itself_first():
    line = silent_line([Peer(0, "host0")], 30, "host1", "ib0")
    assert line.startswith("host1 is cut off, its network interface ib0 has no link: no answer from host0 (rank 0)")


def test_a_rank_that_ended_is_named_with_its_host():
    assert ended_line(Peer(3, "host1")).startswith("rank 3 on host1 has ended in mid-training")


def test_the_interface_of_an_address_that_works_has_a_link():
    assert interface_without_link("127.0.0.1") is None
    assert interface_without_link("192.0.2.1") is None, "nobody has it"
