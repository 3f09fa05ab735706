from __future__ import annotations

import re

import pytest

from tests.launch.preflight.two_nodes import Node, run_nodes


@pytest.mark.slow
def test_where_one_rank_fails_all_end_and_rank_0_says_why(runs, tmp_path):
    module = ["tests.launch.preflight.failing_together", str(tmp_path)]
    ended = run_nodes(module, [Node(), Node(), Node()], tmp_path / "none", runs.environment())
    assert ended.codes == [1, 1, 1], ended.output
    assert re.fullmatch(r"rank 1 on \S+ \(node 1\): out of memory", (tmp_path / "report").read_text())
    assert not list(tmp_path.glob("went-on-*"))
    assert ended.seconds < 60
