from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.durable import sha256_file, sha256_json, whole_file, write_json


def test_a_file_appears_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with pytest.raises(RuntimeError), whole_file(path, "w") as file:
        file.write("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with whole_file(path, "w") as file:
        file.write("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_a_failed_rewrite_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_hashes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_file(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) != sha256_json({"a": 2, "b": [2]})


@pytest.mark.slow
def test_kill_9_never_leaves_a_half_file_under_its_name(tmp_path):
    path = tmp_path / "counter.json"
    writer = (
        "import sys, pathlib; from pipeline.durable import write_json\n"
        "path = pathlib.Path(sys.argv[1]); n = 0\n"
        "while True:\n    write_json(path, {'n': n, 'tail': 'x' * 200_000}); n += 1\n"
    )
    import json

    for delay in (0.2, 0.35, 0.5):
        process = subprocess.Popen([sys.executable, "-c", writer, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(json.loads(path.read_text())["tail"]) == 200_000
