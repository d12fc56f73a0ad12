"""The AWS rig without SkyPilot: its machines, its orders, and what is left when a process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rigs import skyhome
from tests.rigs.aws import folders, image
from tests.rigs.aws.catalogs import IMAGES
from tests.rigs.aws.notice import METADATA, preempt_with_notice
from tests.rigs.aws.rig import AwsRig, clear_abandoned, up


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def client(service: Any, rig: AwsRig, region: str = "us-east-1") -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.Session(aws_access_key_id="fake", aws_secret_access_key="fake", region_name=region)
    once = Config(retries={"total_max_attempts": 1})
    return session.client(service, endpoint_url=rig.s3_endpoint, config=once)


def launch(rig: AwsRig, zone: str) -> str:
    """A spot instance as SkyPilot asks for one, with a key in its user data; its id once it has booted."""
    key = rig.folder / "home" / ".sky" / "clients" / "test" / "ssh" / "sky-key"
    if not key.exists():
        key.parent.mkdir(parents=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = key.with_suffix(".pub").read_text().strip()
    users = [{"name": image.USER, "ssh_authorized_keys": [public]}]
    ec2 = client("ec2", rig, zone[:-1])
    subnets = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [zone]}])["Subnets"]
    subnet = next(item["SubnetId"] for item in subnets if item["CidrBlock"].startswith("100."))
    answer = ec2.run_instances(
        ImageId=IMAGES[zone[:-1]],
        InstanceType="m6i.large",
        MinCount=1,
        MaxCount=1,
        NetworkInterfaces=[{"SubnetId": subnet, "DeviceIndex": 0}],
        InstanceMarketOptions={"MarketType": "spot"},
        UserData="#cloud-config\n" + json.dumps({"users": users}),
    )
    instance = str(answer["Instances"][0]["InstanceId"])
    until(lambda: rig.shell(instance, "echo here") == "here\n")
    return instance


def processes_in(rig: AwsRig, instance: str) -> list[int]:
    """The processes of an instance: those whose disk is its."""
    wanted = f"upperdir={rig.folder}/machines/{instance}/"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "mounts").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_only_a_folder_that_the_rig_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "work").touch()
    made = folders.make(tmp_path / "made")
    (tmp_path / "link").symlink_to(made)
    for path in (tmp_path / "foreign", tmp_path, tmp_path / "link"):
        with pytest.raises(RuntimeError, match="stays"):
            folders.remove(path)
    with pytest.raises(FileExistsError):
        folders.make(tmp_path / "foreign")
    assert (tmp_path / "foreign" / "work").exists()
    folders.remove(made)
    assert not made.exists()


def test_a_machine_sees_its_own_and_nothing_of_this_one(aws: AwsRig) -> None:
    instance = launch(aws, "us-west-2b")
    assert aws.shell(instance, METADATA + "placement/availability-zone") == "us-west-2b"
    assert aws.shell(instance, "curl -s http://169.254.169.254/latest/meta-data/instance-id") == (
        "a session token is required"
    )
    # A checkout's own virtual environment may lie there: the way to it is all that shows.
    way = {Path(sys.prefix).resolve().parts[1:3]}
    for folder, names in (("root", []), ("home", [image.USER]), ("tmp", [])):
        shown = aws.shell(instance, f"ls /{folder}").split()
        assert {(folder, name) for name in shown} - way == {(folder, name) for name in names} - way
    assert aws.shell(instance, "ps -e -o comm= | head -1") == "bash\n"
    python = Path(sys.prefix).resolve() / "bin" / "python"
    assert aws.shell(instance, f"{python} -c 'import yaml; print(1)'") == "1\n"
    put = f"import boto3; boto3.client('s3').put_object(Bucket='{aws.bucket}', Key='from/it', Body=b'text')"
    aws.shell(instance, f'AWS_ACCESS_KEY_ID=fake AWS_SECRET_ACCESS_KEY=fake {python} -c "{put}"')
    got = client("s3", aws).get_object(Bucket=aws.bucket, Key="from/it")  # the same address here and there
    assert got["Body"].read() == b"text"
    assert "Read-only" in aws.shell(instance, "sudo touch /usr/mine 2>&1")
    aws.preempt(instance, notice=False)


def test_a_notice_comes_before_the_end(aws: AwsRig) -> None:
    instance = launch(aws, "us-east-1b")
    assert '"action": "terminate"' in preempt_with_notice(aws, instance)
    until(lambda: instance not in {item.id for item in aws.instances()})
    assert not processes_in(aws, instance)


def test_a_zone_can_be_out_of_capacity(aws: AwsRig) -> None:
    from botocore.exceptions import ClientError

    aws.capacity("us-east-1a", False)
    with pytest.raises(ClientError, match="InsufficientInstanceCapacity"):
        launch(aws, "us-east-1a")
    aws.capacity("us-east-1a", True)
    aws.preempt(launch(aws, "us-east-1a"), notice=False)


def test_nothing_is_left_of_a_rig_whose_owner_was_killed(aws: AwsRig, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    program = (
        "import os, sys, time; from pathlib import Path; from tests.rigs.aws.rig import up\n"
        "up(Path(sys.argv[1]), owner=os.getpid()); print('up', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], cwd=skyhome.ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout
        assert owner.stdout.readline() == "up\n"
        settings = json.loads((folder / "cloud.json").read_text())
        state = json.loads((folder / "up.json").read_text())
        gateway = settings["block"].replace(".0.0/16", ".0.1")
        other = AwsRig(folder, {}, f"http://{gateway}:{settings['port']}", settings["bucket"], folder)
        instance = launch(other, "us-east-1a")
        assert processes_in(other, instance)
        os.kill(state["cloud"][0], signal.SIGKILL)
        until(lambda: not processes_in(other, instance))  # the machines die with their cloud
        clear_abandoned()
        assert Path(f"/sys/class/net/{settings['bridge']}").exists()  # its owner lives
    finally:
        owner.kill()
        owner.communicate()
    clear_abandoned()
    assert not Path(f"/sys/class/net/{settings['bridge']}").exists()
    assert not list((folder / "machines").iterdir())
    assert Path(f"/sys/class/net/{json.loads((aws.folder / 'cloud.json').read_text())['bridge']}").exists()


def test_a_folder_that_holds_something_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError):
        up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
