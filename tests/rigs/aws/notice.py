"""The notice before a spot instance goes, as a program on the instance sees it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.rig import until
from tests.rigs.aws.rig import AwsRig

METADATA = (
    "token=$(curl -sX PUT http://169.254.169.254/latest/api/token); "
    'curl -s -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/'
)
_ACTION = f"{METADATA}spot/instance-action"


def preempt_with_notice(rig: AwsRig, instance: str) -> str:
    """Preempt the instance, and return what its metadata service then says.

    It is asked from before the notice on: to log in may take a busy machine longer than the rig's grace.
    """
    assert "terminate" not in rig.shell(instance, _ACTION)
    watch = f"touch /tmp/watching; while ! ({_ACTION}) | grep terminate; do sleep 0.1; done"
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(rig.shell, instance, watch)
        until(lambda: "watching" in rig.shell(instance, "ls /tmp"), 120)
        rig.preempt(instance, notice=True)
        return told.result()
