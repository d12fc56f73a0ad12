"""The rigs, one of each per worker. Where the machine cannot host one, its tests skip and say why.

With two workers (``-n 2 --dist loadscope``) two rigs are up at a time, which is what two cores can bear: of
four none gets on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.rigs.aws import image
from tests.rigs.aws.rig import AwsRig, aws_rig
from tests.rigs.slurm import CannotHost, SlurmRig, check_machine, slurm_rig

MONEY = ("test_cap", "test_fuse", "test_strategy")


class ByRig(LoadScopeScheduling):  # type: ignore[misc]
    """Four queues of tests, a rig each: launches and money, on Slurm and on AWS.

    Not ``--dist loadgroup``: pytest 9.2 no longer lets pytest-xdist 3.8 write the group into a test's name.
    """

    def _split_scope(self, nodeid: str) -> str:
        rig = "slurm" if "slurm" in nodeid else "aws"
        return f"{rig} money" if nodeid.rpartition("/")[2].startswith(MONEY) else rig


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByRig:
    return ByRig(config, log)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmRig]:
    """A Slurm cluster that SkyPilot launches on. ``NEMO_SKY_RIGS=1`` makes it a failure not to have one."""
    try:
        check_machine()
    except CannotHost as reason:
        if os.environ.get("NEMO_SKY_RIGS") != "1":
            pytest.skip(f"no Slurm rig: {reason}")
        raise
    with slurm_rig(tmp_path_factory.mktemp("slurm")) as rig:
        yield rig


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsRig]:
    """An AWS that SkyPilot launches on. ``NEMO_SKY_RIGS=1`` makes it a failure not to have one."""
    require_aws()
    with aws_rig(tmp_path_factory.mktemp("aws") / "rig") as rig:
        yield rig


def require_aws() -> None:
    """Skip where this machine cannot host the AWS rig; with ``NEMO_SKY_RIGS=1`` fail."""
    try:
        image.check_machine()
    except image.CannotHost as reason:
        if os.environ.get("NEMO_SKY_RIGS") != "1":
            pytest.skip(f"no AWS rig: {reason}")
        raise
