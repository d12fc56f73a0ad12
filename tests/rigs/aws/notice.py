"""The notice before a spot instance goes, as a program on the instance sees it."""

from __future__ import annotations

import subprocess

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
    watch = f"echo watching; while ! ({_ACTION}) | grep terminate; do sleep 0.1; done"
    words = rig.ssh(instance, watch)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as told:
        assert told.stdout
        first = told.stdout.readline()
        assert first == "watching\n", first + told.stdout.read()
        rig.preempt(instance, notice=True)
        return told.stdout.read()
