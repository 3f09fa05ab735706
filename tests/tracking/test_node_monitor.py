"""What a node measures of itself, and that a kill or a full disk leaves whole lines."""

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from pipeline.tracking.metrics_lines import read_metrics
from pipeline.tracking.node_monitor import NodeMonitor, append_whole_line, last_sample, node_number


def samples_of(folder, node=0):
    return list(read_metrics(folder.system_file(node)))


def wait_for_samples(folder, count, node=0):
    deadline = time.monotonic() + 30
    while len(samples_of(folder, node)) < count:
        assert time.monotonic() < deadline, "no samples came"
        time.sleep(0.02)


def test_samples_are_those_of_this_machine_and_go_on_where_the_last_attempt_ended(folder):
    began = time.time()
    for attempt in (1, 2):
        with NodeMonitor(folder, 0, 0.1):
            wait_for_samples(folder, 2 * attempt)
    # A kill in the middle of a line.
    with open(folder.system_file(0), "a") as file:
        file.write('{"step": 99, "ti')
    with NodeMonitor(folder, 0, 0.1):
        wait_for_samples(folder, len(samples_of(folder)) + 2)
    lines = samples_of(folder)
    assert [line.step for line in lines] == list(range(1, len(lines) + 1))
    for line in lines:
        assert line.host == socket.gethostname()
        assert began * 1000 - 1 <= line.time_ms <= time.time() * 1000
        assert 0 <= line.metrics["cpu_utilization_percentage"] <= 100
        assert 0 < line.metrics["system_memory_usage_percentage"] <= 100
        assert line.metrics["network_receive_megabytes"] >= 0
        disk = os.statvfs(folder.path)
        free = disk.f_bavail * disk.f_frsize / 1e6
        assert line.metrics["run_folder_available_megabytes"] == pytest.approx(free, rel=0.05, abs=500)
    times = [line.time_ms for line in lines]
    assert times == sorted(times)


def test_the_load_is_that_of_the_time_between_two_samples(folder):
    busy = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(busy) for _ in range(os.cpu_count() or 1)]
    try:
        with NodeMonitor(folder, 0, 0.5):
            wait_for_samples(folder, 2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert all(line.metrics["cpu_utilization_percentage"] > 50 for line in samples_of(folder))


def test_only_one_process_a_node_measures_and_none_where_it_is_off(folder):
    with NodeMonitor(folder, None, 0.1), NodeMonitor(folder, 0, 0.0):
        time.sleep(0.2)
    assert not folder.logs.exists()
    torchrun = {"RANK": "9", "LOCAL_RANK": "0", "GROUP_RANK": "1"}
    assert node_number(torchrun) == 1
    assert node_number({**torchrun, "LOCAL_RANK": "1"}) is None
    assert node_number({"RANK": "8", "LOCAL_RANK": "0"}) == 8


FULL = """
import resource, signal, sys
from pathlib import Path
from pipeline.tracking.node_monitor import append_whole_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
for _ in range(3):
    try:
        append_whole_line(Path(sys.argv[1]), "x" * 99)
    except OSError as error:
        print(error.errno)
"""


def test_a_refusing_disk_leaves_no_half_line(tmp_path):
    path = tmp_path / "system.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"{errno.EFBIG}\n"
    assert path.read_text() == ("x" * 99 + "\n") * 2
    append_whole_line(path, "y")
    assert path.read_text().endswith("x\ny\n")


def test_a_folder_that_cannot_be_written_costs_no_more_than_a_line_in_the_log(folder, capfd):
    folder.logs.parent.mkdir(parents=True, exist_ok=True)
    folder.logs.write_text("a file where the folder of logs should be")
    with NodeMonitor(folder, 0, 0.1):
        time.sleep(0.3)
    assert capfd.readouterr().err.count("node monitor: no system metrics of this node: ") == 1


def test_the_last_sample_of_a_long_file_is_found_at_its_end(tmp_path):
    path = tmp_path / "system.jsonl"
    assert last_sample(path) == 0
    line = json.dumps({"step": 0, "padding": "x" * 500})
    with open(path, "w") as file:
        for number in range(1, 1001):
            file.write(line.replace('"step": 0', f'"step": {number}') + "\n")
    assert last_sample(path) == 1000
