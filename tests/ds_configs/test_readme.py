from __future__ import annotations

from pathlib import Path

import ds_configs
from launch.plan.state_memory import memory_table

FOLDER = Path(ds_configs.__file__).parent


def test_the_memory_table_is_the_computed_one():
    assert memory_table() in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_strategy_is_told():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in FOLDER.glob("*.json") if f"| `{path.stem}` |" not in text] == []
