"""What all tests on a cluster made on this machine share: they need programs and rights, and say which are missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.slurm_cluster import SlurmCluster

SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""Daemons lie where not everybody's PATH leads."""


def needs(*programs: str, package: str) -> None:
    """Skip the test, naming what is missing, unless this is root and all programs are there."""
    missing = [program for program in programs if shutil.which(program, path=SYSTEM_PATH) is None]
    if missing:
        pytest.skip(f"not on PATH: {', '.join(missing)} (apt-get install {package})")
    if os.geteuid() != 0:
        pytest.skip(f"{programs[0]} is to be started by root")


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A real Slurm of two nodes, for the tests of a file."""
    needs("sbatch", "srun", "scontrol", "slurmctld", "slurmd", "munged", package="slurm-wlm munge")
    from tests.cluster.slurm_cluster import SlurmCluster

    with SlurmCluster() as started:
        yield started
