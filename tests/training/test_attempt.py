from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.torchrun import FAILURES_VARIABLE, LastWords
from pipeline.errors import UserError, WorldError
from pipeline.host_name import host_name
from pipeline.training.attempt import (
    launcher_log,
    next_attempt,
    raise_first_failure,
    rank_log,
    report_failure,
    report_hang,
    report_loss,
    report_stop,
    reported_hangs,
    reported_losses,
    reported_stop,
)
from pipeline.training.lost_ranks import LostRanks
from pipeline.training.stopping import EXIT_REQUEUE, Stopped
from pipeline.training.watchdog import Hang


def test_attempts_count_up(tmp_path):
    assert next_attempt(tmp_path / "none") == 1
    launcher_log(tmp_path, 1).touch()
    rank_log(tmp_path, 9, 3).touch()
    assert next_attempt(tmp_path) == 10


def test_the_first_failure_is_raised_as_what_it_was(tmp_path, capsys):
    assert report_failure(tmp_path, 1, 1, WorldError("shard gone")) == 1
    assert report_failure(tmp_path, 1, 0, RuntimeError("lost a peer")) == 1
    with pytest.raises(WorldError, match=r"rank 1 on \S+: shard gone"):
        raise_first_failure(tmp_path, 1, 1)
    assert report_failure(tmp_path, 2, 0, UserError("no such thing")) == 2
    with pytest.raises(UserError, match="^no such thing$"):
        raise_first_failure(tmp_path, 2, 1)


def test_a_bug_keeps_its_traceback_and_silence_is_named(tmp_path, capsys):
    try:
        raise KeyError("oops")
    except KeyError as error:
        report_failure(tmp_path, 1, 0, error)
    with pytest.raises(RuntimeError, match="(?s)rank 0.*Traceback.*oops"):
        raise_first_failure(tmp_path, 1, 1)
    with pytest.raises(WorldError, match="the ranks ended with -9 and no message"):
        raise_first_failure(tmp_path, 2, -9)


def test_a_rank_that_died_in_silence_is_named_not_the_one_that_lost_it(tmp_path, capsys):
    report_failure(tmp_path, 1, 0, RuntimeError("[enforce fail] Connection reset by peer"))
    report_failure(tmp_path, 1, 2, SystemExit(143))
    launcher_log(tmp_path, 1).write_text(
        "Root Cause (first observed failure):\n[0]:\n  time      : 2026\n  host      : a\n"
        "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)\n"
    )
    with pytest.raises(WorldError, match="rank 1 ended with exit code -9 and no message"):
        raise_first_failure(tmp_path, 1, 1)


def test_the_launcher_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FAILURES_VARIABLE, str(tmp_path))
    logs = tmp_path / "logs"

    def left(error: BaseException, logs: Path | None = logs, attempt: int = 1) -> tuple[str, bool, int]:
        code = report_failure(logs, attempt, 3, error)
        words = LastWords(**json.loads((tmp_path / "rank-0003.json").read_text()))
        assert words.exit_code == code
        return words.line, words.bystander, code

    logs.mkdir()
    log = rank_log(logs, 1, 3)
    gloo = "[/src/gloo/pair.cc:537] Read error [10.0.0.2]:7: reset. This is typical. Good luck!\nmore"
    assert left(UserError("no such shards")) == (f"no such shards ({log})", False, 2)
    assert left(OSError(28, "No space left", "/run")) == (f"/run: No space left ({log})", False, 1)
    assert left(KeyError("oops")) == (f"KeyError: 'oops' ({log})", False, 1)
    assert left(RuntimeError(gloo)) == (f"lost other ranks: Read error [10.0.0.2]:7: reset ({log})", True, 1)
    capsys.readouterr()
    assert left(UserError("recipe.yaml: no such file"), None, 0) == ("recipe.yaml: no such file", False, 2)
    assert capsys.readouterr().err == "", "the launcher tells it"
    monkeypatch.delenv(FAILURES_VARIABLE)
    assert report_failure(None, 0, 3, UserError("recipe.yaml: no such file")) == 2
    assert capsys.readouterr().err == f"rank 3 on {host_name()}: recipe.yaml: no such file\n", "no traceback of it"


def test_a_full_disk_is_the_world_s(tmp_path, capsys):
    report_failure(tmp_path, 1, 1, OSError(28, "No space left on device", "/data/x"))
    with pytest.raises(WorldError, match=r"rank 1 on \S+: /data/x: No space left on device"):
        raise_first_failure(tmp_path, 1, 1)


def test_a_stop_is_no_failure_and_reaches_the_command(tmp_path, capsys):
    stop = Stopped("stopped at step 7 because of SIGTERM", step=7, requeue=True, again=True)
    assert report_failure(tmp_path, 3, 0, stop) == EXIT_REQUEUE
    assert not list(tmp_path.iterdir())
    assert reported_stop(tmp_path, 3) is None
    report_stop(tmp_path, 3, stop)
    found = reported_stop(tmp_path, 3)
    assert found is not None and vars(found) == vars(stop) and str(found) == str(stop)
    assert next_attempt(tmp_path) == 4


def test_a_hang_is_one_line_of_all_reports_and_those_who_lost_a_peer_do_not_count(tmp_path, capsys):
    hang = Hang("step 12", 600.0, "all_reduce (from _reduced, pipeline/training/agreement.py:92)", True)
    report_hang(tmp_path, 1, 2, 4, hang)
    report_hang(tmp_path, 1, 0, 4, hang)
    report_failure(tmp_path, 1, 3, RuntimeError("Connection closed by peer"))
    assert [report["rank"] for report in reported_hangs(tmp_path, 1)] == [0, 2]
    with pytest.raises(
        WorldError, match=r"no step for 10.0 minutes, at step 12: rank 1, rank 3 give no sign"
    ) as caught:
        raise_first_failure(tmp_path, 1, 1)
    assert str(caught.value).count("waited for others in all_reduce") == 1


def test_who_lost_another_comes_after_who_failed_by_himself(tmp_path, capsys):
    report_loss(tmp_path, 1, 0, "no answer from b (rank 1) for 30 s")
    report_loss(tmp_path, 1, 2, "c is cut off")
    assert [report["rank"] for report in reported_losses(tmp_path, 1)] == [0, 2]
    with pytest.raises(LostRanks, match="^no answer from b"):
        raise_first_failure(tmp_path, 1, 1)
    report_failure(tmp_path, 1, 1, WorldError("shard gone"))
    with pytest.raises(WorldError, match=r"^rank 1 on \S+: shard gone"):
        raise_first_failure(tmp_path, 1, 1)
