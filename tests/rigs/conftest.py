"""The rigs, one of each per test run. Where the machine cannot host one, its tests skip and say why.

With two workers (``-n 2 --dist loadgroup``), each rig is one worker's: SkyPilot mostly waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.rigs.aws import image
from tests.rigs.aws.rig import AwsRig, aws_rig
from tests.rigs.slurm import CannotHost, SlurmRig, check_machine, slurm_rig


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks when it is told of the tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for rig in ("slurm", "aws"):
            if rig in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(rig))


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
