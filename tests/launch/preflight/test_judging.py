"""What checks make of what ranks saw, where this machine cannot show it: GPUs, clocks, wrong sums, addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.preflight import all_reduce, clocks, devices, memory, mock_step, network, slow_ranks, versions
from launch.preflight.check import Check, Checked, Context, Finding, Told
from launch.preflight.meeting import Meeting, places_of
from launch.preflight.run_checks import exit_code
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder

GIB = 2**30


def judged(check: Check, seen: list, per_node: int = 1, gpus=None) -> list[tuple[str, str]]:
    """Verdicts and messages for what each rank saw; `per_node` ranks a node, nodes called n0, n1, ..."""
    ranks = [{"host": f"n{number // per_node}", "local_rank": number % per_node} for number in range(len(seen))]
    places = places_of(ranks)
    recipe = read_recipe("quickstart")
    context = Context(recipe, RunFolder(Path("/nowhere"), recipe), Meeting(places, 0, 1.0), gpus, tokenized=True)
    told = [Told(place, what) for place, what in zip(places, seen, strict=True)]
    return [(finding.verdict, finding.message) for finding in check.judge(context, told)]


def gpu(free: float = 79.0, name: str = "NVIDIA H100") -> dict:
    return {"name": name, "free_bytes": int(free * GIB), "total_bytes": 80 * GIB}


def test_idle_gpus_of_one_kind_are_fine():
    [(verdict, message)] = judged(devices.CHECK, [[gpu()] * 2] * 4, per_node=2, gpus=2)
    assert (verdict, message) == ("ok", "4 x NVIDIA H100 on 2 nodes, idle")


def test_a_gpu_that_somebody_uses_is_named():
    seen = [[gpu(), gpu()], [gpu(), gpu()], [gpu(), gpu(free=40)], [gpu(), gpu(free=40)]]
    [(verdict, message)] = judged(devices.CHECK, seen, per_node=2, gpus=2)
    assert verdict == "failed"
    assert message.startswith("GPU 1 of n1 is not idle: 40.0 of 80 GiB are taken")


def test_a_missing_gpu_is_named_with_its_node():
    seen = [[gpu()] * 2, [gpu()] * 2, [gpu()], [gpu()]]
    for gpus in (2, "ranks", None):
        [(verdict, message)] = judged(devices.CHECK, seen, per_node=2, gpus=gpus)
        assert verdict == "failed"
        assert message.startswith("n1 has 1 GPU, ")


def test_gpus_of_two_kinds_are_a_warning():
    found = judged(devices.CHECK, [[gpu()], [gpu(name="NVIDIA A100")]], gpus=1)
    assert [verdict for verdict, _ in found] == ["warning"]
    assert "NVIDIA A100 on n1" in found[0][1]


def test_ranks_without_gpus_where_one_each_is_wanted():
    assert [verdict for verdict, _ in judged(devices.CHECK, [[], []], gpus="ranks")] == ["failed"] * 2
    assert [verdict for verdict, _ in judged(devices.CHECK, [[], []], gpus=None)] == ["ok"]


@pytest.mark.parametrize(("ahead", "told"), [(-7.0, "7.0 s behind that of n0"), (9.5, "9.5 s ahead of that of n0")])
def test_a_clock_that_is_off_is_named(ahead, told):
    [(verdict, message)] = judged(clocks.CHECK, [0.0, 0.1, ahead])
    assert verdict == "failed"
    assert message.startswith("the clock of n2 is ")
    assert told in message


def test_clocks_that_agree():
    assert judged(clocks.CHECK, [0.0, 0.25, -0.5]) == [("ok", "at most 0.500 s apart")]


def test_a_wrong_sum_names_ranks_and_size():
    seen = [{"wrong": {"1": 0, "16": wrong}, "bytes_per_second": {"1": 1e9, "16": 2e9}} for wrong in (0, 3, 0)]
    [(verdict, message)] = judged(all_reduce.CHECK, seen)
    assert verdict == "failed"
    assert "16 MiB is wrong in up to 3 numbers on rank 1 on n1" in message


def test_a_rank_that_computes_or_sends_slowly_is_named():
    seen = [{"products_per_second": 100.0, "bytes_per_second": 1e9} for _ in range(4)]
    assert [verdict for verdict, _ in judged(slow_ranks.CHECK, seen)] == ["ok"]
    slow = [*seen[:3], {"products_per_second": 20.0, "bytes_per_second": 1e8}]
    assert [message.partition(":")[0] for _, message in judged(slow_ranks.CHECK, slow)] == [
        "rank 3 on n3 computes 5.0 times slower than the others",
        "rank 3 on n3 sends 10.0 times slower than the others",
    ]


def test_of_two_ranks_the_slower_one_is_named():
    seen = [{"products_per_second": speed, "bytes_per_second": None} for speed in (10.0, 100.0)]
    [(verdict, message)] = judged(slow_ranks.CHECK, seen)
    assert verdict == "failed"
    assert message.startswith("rank 0 on n0 computes 10.0 times slower")


def addresses(**other) -> dict:
    seen = {"backend": "gloo", "named": "", "address": "10.0.0.1", "interface": "ib0", "interfaces": ["ib0", "lo"]}
    return {**seen, "reached": True, "error": "", "seconds": 0.1, **other}


def test_a_node_that_is_not_reached_at_its_own_name_is_told_the_interface():
    # The first one asks the second.
    [(verdict, message)] = judged(network.CHECK, [addresses(reached=False), addresses(address="127.0.1.1")])
    assert verdict == "failed"
    assert message.startswith("n1 does not answer n0 at 127.0.1.1, which its own name stands for")
    assert "set cluster.network_interface=ib0" in message


def test_an_interface_that_a_node_lacks_is_named():
    [(verdict, message)] = judged(network.CHECK, [addresses(named="ib0"), addresses(named="ib0", interfaces=["eth0"])])
    assert verdict == "failed"
    assert message.startswith("n1 has no interface ib0")


def test_a_rank_that_cannot_join_is_named():
    [(verdict, message)] = judged(network.CHECK, [addresses(), addresses(error="refused")])
    assert (verdict, message) == ("failed", "rank 1 on n1 cannot join the others over gloo: refused")


def test_a_node_with_too_little_memory_is_named():
    [(verdict, message)] = judged(
        memory.CHECK, [{"available_bytes": size, "on_gpu": False} for size in (64 * GIB, GIB // 2)]
    )
    assert verdict == "failed"
    assert message.startswith("n1 has 0.5 GiB of main memory left, 1 ranks take about ")


def test_a_step_that_nearly_fills_a_gpu_is_a_warning_and_a_loss_that_is_no_number_fails():
    seen = {"finite": True, "peak_bytes": 40 * GIB, "device_bytes": 80 * GIB, "seconds": 1.0}
    assert [verdict for verdict, _ in judged(mock_step.CHECK, [seen, seen])] == ["ok"]
    tight = judged(mock_step.CHECK, [seen, {**seen, "peak_bytes": 79 * GIB}])
    assert [verdict for verdict, _ in tight] == ["warning", "ok"]
    assert "99 % of the memory of rank 1 on n1" in tight[0][1]
    [(verdict, message)] = judged(mock_step.CHECK, [seen, {**seen, "finite": False}])
    assert verdict == "failed"
    assert "not finite on rank 1 on n1" in message


def test_packages_that_decide_nothing_are_a_warning():
    deciding = {"torch": "2", "deepspeed": "1", "transformers": "5"}
    seen = [{"deciding": deciding, "others": {"rich": version}, "system": "Linux"} for version in ("14", "13")]
    [(verdict, message)] = judged(versions.CHECK, seen)
    assert verdict == "warning"
    assert "rich: 14 on n0, 13 on n1" in message


def test_the_users_mistakes_alone_end_with_2():
    mistake, broken = Finding("failed", "no such folder", user=True), Finding("failed", "no GPU")
    fine = Checked("disk", 0.0, [Finding("ok", "room")])
    assert exit_code([fine]) == 0
    assert exit_code([fine, Checked("shards", 0.0, [mistake])]) == 2
    assert exit_code([Checked("shards", 0.0, [mistake]), Checked("devices", 0.0, [broken])]) == 1
