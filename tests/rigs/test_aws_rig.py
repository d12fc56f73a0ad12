"""SkyPilot's own AWS provisioner, unpatched, on the emulated AWS. Each launch takes a minute: few of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.rigs.aws.catalogs import REGIONS
from tests.rigs.aws.notice import preempt_with_notice
from tests.rigs.aws.rig import AwsRig, Instance

SKY = Path(sys.executable).with_name("sky")
SMALL = {"infra": "aws", "cpus": "2+"}

TALK = """\
echo "rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES"
echo "$SKYPILOT_CLUSTER_INFO"
head=$(head -n1 <<<"$SKYPILOT_NODE_IPS")
if [ "$SKYPILOT_NODE_RANK" = 0 ]; then
  timeout 20 python3 -m http.server 29500 || true
else
  curl -s --retry 30 --retry-connrefused -o /dev/null -w "head answered %{http_code}\\n" $head:29500
fi
"""


def until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for what happens in other processes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.2)


def sky(rig: AwsRig, *words: str | Path, timeout: float = 400) -> str:
    done = subprocess.run(
        [SKY, *words], env=dict(rig.env), capture_output=True, text=True, timeout=timeout, cwd=rig.folder
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def task(rig: AwsRig, name: str, **values: object) -> Path:
    path = rig.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "resources": SMALL, **values}))
    return path


def nodes(rig: AwsRig, cluster: str) -> list[Instance]:
    return [item for item in rig.instances() if item.cluster.startswith(cluster)]


@pytest.fixture(scope="module")
def pair(aws: AwsRig) -> Iterator[tuple[AwsRig, str]]:
    """A spot cluster of two nodes, launched while one zone has no capacity, and what its job printed."""
    aws.capacity("us-east-1a", False)
    spec = task(aws, "pair", num_nodes=2, resources={**SMALL, "use_spot": True}, run=TALK)
    try:
        printed = sky(aws, "launch", "-y", "-c", "pair", spec)
    finally:
        aws.capacity("us-east-1a", True)
    yield aws, printed
    sky(aws, "down", "-y", "pair")
    assert not nodes(aws, "pair")


def test_nodes_see_each_other_and_skypilots_variables(pair: tuple[AwsRig, str]) -> None:
    rig, printed = pair
    assert "rank 0 of 2" in printed
    assert "rank 1 of 2" in printed
    assert "head answered 200" in printed
    assert '"cloud": "AWS"' in printed
    assert len(nodes(rig, "pair")) == 2


def test_a_zone_without_capacity_is_passed_over(pair: tuple[AwsRig, str]) -> None:
    rig, _ = pair
    assert {item.zone for item in nodes(rig, "pair")} <= set(REGIONS["us-east-1"]) - {"us-east-1a"}
    assert all(item.spot for item in nodes(rig, "pair"))


def test_a_notice_comes_before_the_end_and_the_end_is_sudden(pair: tuple[AwsRig, str]) -> None:
    rig, _ = pair
    told, spared = nodes(rig, "pair")
    assert '"action": "terminate"' in preempt_with_notice(rig, told.id)
    until(lambda: [item.id for item in nodes(rig, "pair")] == [spared.id], 30)
    rig.preempt(spared.id, notice=False)
    assert not nodes(rig, "pair")
