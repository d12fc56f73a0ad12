"""The fuse with everybody else dead: on Slurm, where it cancels its allocation, and on AWS, by the skylet.

The launch is detached, its budget long enough for the test. Then the API server with its controllers is
killed, and the agent is stopped, not killed: a killed one takes its job along, a hung one keeps the nodes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.rigs import skyhome
from tests.rigs.aws.rig import AwsRig
from tests.rigs.launching import PACED, aws_project, capped, eventually, launching
from tests.rigs.slurm import SlurmRig

MONEY = "money: {check_every: 10s, setup: 120s, teardown: 60s}\n"
# Half a check until the last renewal, a check and a save (10 s of grace, 10 s to commit) of lease, a check
# until it burns; then scancel, or a look of the skylet a minute later and the instances' end.
LEASE_S = 45.0
SKYLET_S = 120.0
ENDLESS = (*PACED, "steps=1000000")


def hang(run_id: str) -> None:
    """SIGSTOP the agents of the run on this machine, and all that is theirs but the training."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "launcher.agent" in words and any(run_id in word for word in words):
                process.send_signal(signal.SIGSTOP)
                found.append(process)
        except psutil.Error:
            continue
    assert found, "no agent of this run"


def test_slurm_allocation_goes_without_launcher_controller_and_agent(slurm: SlurmRig, tmp_path: Path) -> None:
    with launching(slurm.home, slurm.profile, tmp_path / "project") as (usual, _):
        on = capped(usual.project, slurm.profile, MONEY)
        run_id = on.detach(*ENDLESS, "--force", "--budget", "20")
        on.follow(run_id)
        (limit,) = slurm.squeue("%l")
        assert limit != "UNLIMITED", "the allocation's own time limit is the budget's"
        skyhome.stop(slurm.home.folder)
        hang(run_id)
        began = time.monotonic()
        assert slurm.squeue()
        assert eventually(lambda: not slurm.squeue(), LEASE_S + 60), "the allocation outlived its lease"
        assert time.monotonic() - began < LEASE_S + 60


@pytest.fixture
def gone(aws: AwsRig) -> Iterator[None]:
    yield
    assert eventually(lambda: not aws.instances(), 120), "an instance was left running"


@pytest.mark.usefixtures("gone")
def test_aws_instance_goes_without_launcher_controller_and_agent(aws: AwsRig, tmp_path: Path) -> None:
    on = capped(aws_project(aws, tmp_path / "project"), aws.profile, MONEY)
    run_id = on.detach(*ENDLESS, "--force", "--budget", "20")
    on.follow(run_id)
    skyhome.stop(Path(aws.env["HOME"]))
    hang(run_id)
    assert aws.instances()
    assert eventually(lambda: not aws.instances(), LEASE_S + SKYLET_S), "the instance outlived its lease"
