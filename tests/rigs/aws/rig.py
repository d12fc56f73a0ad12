"""An AWS of its own on one machine, for tests and for a developer: bring it up, give orders, take it down.

    with aws_rig(folder) as rig:
        subprocess.run(["sky", "launch", ...], env=rig.env)
        rig.preempt(rig.instances()[0].id, notice=True)

FOLDER holds all of it: HOME, logs, the instances' disks, ``up.json`` with the process ids. A rig whose owner
died is cleared by the next one on the machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.rigs import skyhome
from tests.rigs.aws import catalogs, folders, image, network, seed
from tests.rigs.aws.cloud import ORDERS, Settings

BUCKET = "nemo-sky-rig"
GRACE_S = 5.0  # where AWS gives 120


@dataclass(frozen=True)
class Instance:
    """An instance as moto has it; ``booted`` is whether its machine runs."""

    id: str
    state: str
    kind: str
    zone: str
    spot: bool
    address: str
    cluster: str
    booted: bool
    failed: str | None


@dataclass(frozen=True)
class AwsRig:
    """A rig that is up. ``env`` is all that a process needs to use it, and nothing of the user's own AWS."""

    folder: Path
    env: Mapping[str, str]
    s3_endpoint: str
    bucket: str
    profile: Path

    def instances(self, *, running: bool = True) -> list[Instance]:
        """The running instances, or all that there ever were."""
        found = [Instance(**values) for values in self._order("instances")]
        return [item for item in found if item.state in ("pending", "running") or not running]

    def preempt(self, instance_id: str, *, notice: bool, grace_s: float | None = None) -> None:
        """Take a spot instance away: after the notice's grace, the rig's own or ``grace_s``, or at once.

        Without notice this returns when the machine is dead and EC2 says so. With notice it returns when
        the metadata service announces it.
        """
        if not self._order("preempt", instance=instance_id, notice=notice, grace_s=grace_s):
            raise ValueError(f"{instance_id} is not running")
        if not notice:
            _until(lambda: instance_id not in {item.id for item in self.instances()}, 30)

    def shell(self, instance_id: str, command: str) -> str:
        """What a command prints on an instance, as its user, over SkyPilot's own key."""
        words = self.ssh(instance_id, command)
        return subprocess.run(words, capture_output=True, text=True, timeout=180).stdout

    def ssh(self, instance_id: str, command: str) -> list[str]:
        """The words that run a command on an instance."""
        address = next(item.address for item in self.instances() if item.id == instance_id)
        # One for each user whom SkyPilot has seen, as which a test launched: `sky` itself or nemo-sky.
        keys = (self.folder / "home" / ".sky" / "clients").glob("*/ssh/sky-key")
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        named = [*(("-i", str(key)) for key in keys), *(("-o", option) for option in options)]
        ssh = ["ssh", "-T", *(word for words in named for word in words)]
        return [*ssh, f"{image.USER}@{address}", command]

    def capacity(self, zone: str, ok: bool, *, spot: bool = False) -> None:
        """Whether RunInstances in ``zone``, with ``spot`` only that of spot instances, succeeds or answers
        InsufficientInstanceCapacity."""
        self._order("capacity", zone=f"{zone} spot" if spot else zone, ok=ok)

    def hold(self, step: int | None) -> None:
        """Hold back every PUT to S3 that commits a checkpoint of ``step`` or a later one; None holds nothing.
        What an earlier call held fails now."""
        self._order("hold", step=step)

    def reached(self) -> str | None:
        """The path of the first request that was held back since the last ``hold``."""
        found = self._order("reached")
        return None if found is None else str(found)

    def silence(self, silent: bool) -> None:
        """While ``silent``, S3 answers every request with 503."""
        self._order("silence", silent=silent)

    def _order(self, name: str, **wanted: object) -> Any:
        request = urllib.request.Request(f"{self.s3_endpoint}{ORDERS}{name}", json.dumps(wanted).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


@contextmanager
def aws_rig(folder: Path, *, grace_s: float = GRACE_S) -> Iterator[AwsRig]:
    """Bring a rig up in ``folder`` and take it down again. Raises CannotHost where the machine cannot."""
    try:
        yield up(folder, grace_s=grace_s, owner=os.getpid())
    finally:
        down(folder)


def up(folder: Path, *, grace_s: float = GRACE_S, owner: int | None = None) -> AwsRig:
    """Bring a rig up in ``folder``, which is made. Without ``owner`` it stays until ``down``."""
    image.check_machine()
    folder = folder.resolve()
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: a rig needs a new folder")
    clear_abandoned()
    disk = image.ensure()
    folders.make(folder)
    with _one_at_a_time():  # from choosing the addresses until they are taken
        (port,), api_port = skyhome.free_ports(1), skyhome.api_port()
        settings = Settings(f"nsr{uuid.uuid4().hex[:8]}", network.free_block(), port, BUCKET, grace_s)
        (folder / "cloud.json").write_text(json.dumps(asdict(settings)))
        state = State(settings.bridge, owner=_identity(owner) if owner else None, cloud=None)
        _save(folder, state)
        (_registry() / settings.bridge).symlink_to(folder)
        process = _start_cloud(folder)
        _save(folder, replace(state, cloud=_identity(process.pid)))
        _until(lambda: (folder / "ready").exists() or process.poll() is not None, 120)
    if not (folder / "ready").exists():
        raise RuntimeError(f"the rig's AWS did not start:\n{(folder / 'cloud.log').read_text()[-3000:]}")
    home = _home(folder, disk, settings.endpoint, api_port)
    home.write_script(folder / "env.sh")
    return AwsRig(folder, home.env, settings.endpoint, BUCKET, _profile(folder))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Among the rigs of this machine, which several test runs may bring up at once."""
    with _registry().with_name("up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def down(folder: Path) -> None:
    """Take down what is up in ``folder``, whoever brought it up and however it ended; keep its logs."""
    folder = folder.resolve()
    if not (folder / "up.json").exists():
        return
    state = State(**json.loads((folder / "up.json").read_text()))
    skyhome.stop(folder / "home")
    if state.cloud:
        _end(state.cloud)
    network.remove_bridge(state.bridge)
    for machine in (folder / "machines").glob("i-*"):
        folders.remove(machine)
    (_registry() / state.bridge).unlink(missing_ok=True)
    (folder / "up.json").unlink()


def clear_abandoned() -> None:
    """Take down the rigs of this machine whose owner is no more."""
    with _one_at_a_time():
        for entry in _registry().iterdir():
            try:
                state = State(**json.loads((entry / "up.json").read_text()))
            except OSError:  # its folder was removed
                network.remove_bridge(entry.name)
                entry.unlink()
                continue
            if state.owner and _identity(state.owner[0]) != state.owner:
                down(entry)


@dataclass(frozen=True)
class State:
    """FOLDER/up.json. A process is its id and its start time, which a later one of that id does not share."""

    bridge: str
    owner: list[int] | None
    cloud: list[int] | None


def _save(folder: Path, state: State) -> None:
    (folder / "up.json.new").write_text(json.dumps(asdict(state)))
    (folder / "up.json.new").rename(folder / "up.json")


def _home(folder: Path, disk: image.Image, endpoint: str, api_port: int) -> skyhome.SkyHome:
    """HOME of SkyPilot's client and server: credentials, configuration, catalogs, the image's own wheel."""
    home = folder / "home"
    made = skyhome.make(
        home,
        config={"aws": {"vpc_name": seed.VPC, "use_internal_ips": True, "use_ssm": False}},
        accelerators={kind.gpu: ["AWS"] for kind in catalogs.KINDS if kind.gpu},
        probe_url=f"{endpoint}{ORDERS}alive",
        port=api_port,
        env={"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"},
    )
    catalogs.write(home)
    (home / ".aws").mkdir()
    keys = "aws_access_key_id = fake\naws_secret_access_key = fake\n"
    (home / ".aws" / "credentials").write_text(f"[default]\n{keys}")
    (home / ".aws" / "config").write_text("[default]\nregion = us-east-1\n")
    shutil.copytree(disk.wheels, home / ".sky" / "wheels")
    return made


def _profile(folder: Path) -> Path:
    """A cluster profile for ``nemo-sky launch ... --cluster``: the instances run this project's Python."""
    path = folder / "aws-rig.yaml"
    values = {
        "extends": str(skyhome.ROOT / "clusters" / "aws.yaml"),
        "python": "current",
        "containers": False,
        "env": {"PATH": f"{Path(sys.prefix).resolve() / 'bin'}:{image.PATH}"},
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def _start_cloud(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "cloud.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.rigs.aws.cloud", str(folder)],
            cwd=skyhome.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _end(identity: list[int]) -> None:
    """End a process, kindly at first; the machines die with it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if _identity(identity[0]) != identity:
            return
        os.kill(identity[0], sign)
        with suppress(TimeoutError):
            _until(lambda: _identity(identity[0]) != identity, 20)


def _registry() -> Path:
    """A link to each rig that is up on this machine, by its bridge's name."""
    folder = image.CACHE / "up"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _identity(pid: int) -> list[int] | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[0] == "Z" else [pid, int(stat[19])]


def _signal(pid: int, sign: signal.Signals) -> None:
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return


def _until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {seconds:.0f} s")
        time.sleep(0.05)
