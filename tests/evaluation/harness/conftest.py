"""Local tasks, made once and only read."""

import pytest

from tests.evaluation.harness.local_tasks import make_tasks


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks") / "local")
