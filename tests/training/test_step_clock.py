from __future__ import annotations

import time

import psutil
import pytest
import torch

from pipeline.training.step_clock import StepClock, peak_memory_bytes

CPU = torch.device("cpu")


def take_step(clock: StepClock, forward: float, micro_batches: int = 1) -> None:
    """A step of known length: 20 ms for rows, `forward` s and 10 ms for each micro-batch."""
    clock.begin()
    with clock.part("data"):
        time.sleep(0.02)
    for _ in range(micro_batches):
        with clock.part("forward"):
            time.sleep(forward)
        with clock.part("backward"):
            time.sleep(0.01)


def near(seconds: float):
    """Sleeping takes no less than asked for, and on a busy machine more."""
    return pytest.approx(seconds + 0.01, abs=0.0101)


def test_parts_are_means_over_the_steps_since_the_last_lap():
    clock = StepClock(CPU)
    take_step(clock, 0.02, micro_batches=2)
    clock.end()
    take_step(clock, 0.06)
    found = clock.lap()
    assert found["time/data_seconds"] == near(0.02)
    assert found["time/forward_seconds"] == near(0.05)
    assert found["time/backward_seconds"] == near(0.015)
    assert found["time/optimizer_seconds"] == found["time/save_seconds"] == 0.0
    parts = sum(value for name, value in found.items() if name.startswith("time/"))
    assert parts <= found["speed/step_seconds"] < parts + 0.02
    assert found["speed/data_share"] == found["time/data_seconds"] / found["speed/step_seconds"]
    clock.end()
    take_step(clock, 0.01)
    again = clock.lap()
    assert again["time/forward_seconds"] == near(0.01)
    assert again["speed/step_seconds"] < 0.08


def test_a_save_is_no_part_of_a_step():
    clock = StepClock(CPU)
    take_step(clock, 0.01)
    assert clock.lap()["time/save_seconds"] == 0
    assert 0.04 <= clock.end() < 0.1
    time.sleep(0.2)
    clock.saved()
    for _ in range(2):
        take_step(clock, 0.01)
        clock.end()
    found = clock.lap()
    assert found["time/save_seconds"] == pytest.approx(0.1, abs=0.02)
    assert found["speed/step_seconds"] < 0.1


@pytest.mark.slow
@pytest.mark.alone
def test_what_a_step_worked_is_the_sum_of_its_parts_alone():
    clock = StepClock(CPU)
    take_step(clock, 0.03)
    time.sleep(0.05)  # as in a collective beside the parts
    assert clock.worked == near(0.06)
    clock.begin()
    assert clock.worked == 0


def test_the_peak_of_memory_stays_when_the_memory_is_gone():
    before = peak_memory_bytes(CPU)
    resident = psutil.Process().memory_info().rss
    assert before > 0.9 * resident
    # More than was ever resident, every page written to.
    block = torch.ones(before - resident + (128 << 20), dtype=torch.uint8)
    del block
    assert before + (96 << 20) <= peak_memory_bytes(CPU) < before + (256 << 20)


def test_a_clock_costs_a_step_next_to_nothing():
    clock = StepClock(CPU)
    began = time.perf_counter()
    for _ in range(1000):
        clock.begin()
        for part in ("data", "forward", "backward", "optimizer"):
            with clock.part(part):
                pass
        clock.end()
    assert (time.perf_counter() - began) / 1000 < 2e-4
