from __future__ import annotations

import pytest

from pipeline.errors import UserError, WorldError
from pipeline.training.attempt import launcher_log, next_attempt, raise_first_failure, rank_log, report_failure


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
    with pytest.raises(WorldError, match="exit code -9 and no message"):
        raise_first_failure(tmp_path, 2, -9)
