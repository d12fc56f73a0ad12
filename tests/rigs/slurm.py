"""A real Slurm on one machine, on which SkyPilot launches: two nodes, each with eight pretended H100.

Debian's munge, slurmctld, two slurmd and a login sshd run in namespaces of the rig's own: hostnames,
processes, /etc/hosts, /etc/passwd and /etc/profile are theirs alone, the network is this machine's loopback.
Files are this machine's, as on a cluster with a shared filesystem. Jobs run as root, because a checkout or
its Python may lie where nobody else may look.

Everything in the namespaces ends with their first process. A process of its own watches over whoever holds a
rig, and takes it down after a test that was killed.

    python -m tests.rigs.slurm up DIR      # DIR is new; then: source DIR/env.sh; sky check slurm
    python -m tests.rigs.slurm down DIR
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.rigs import skyhome, slurm_files
from tests.rigs.slurm_files import CLUSTER, GPU, NODES, PARTITION, Ports

NEEDED = ("slurmctld", "slurmd", "munged", "sshd", "ssh", "ssh-keygen", "rsync", "unshare", "curl")
PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "openssh-server",
    "openssh-client", "rsync", "curl",
)  # fmt: skip
START_S = 60.0  # 2 s on an idle machine


class CannotHost(Exception):
    """This machine cannot run the rig; the message says why."""


@dataclass(frozen=True)
class SlurmRig:
    """A running rig. ``profile`` is a cluster profile for ``nemo-sky launch --cluster``."""

    folder: Path
    home: skyhome.SkyHome

    cluster = CLUSTER
    partition = PARTITION
    infra = f"slurm/{CLUSTER}/{PARTITION}"

    @property
    def env(self) -> dict[str, str]:
        return self.home.env

    @property
    def profile(self) -> Path:
        return self.folder / "profile.yaml"

    def squeue(self, shown: str = "%j") -> list[str]:
        """The jobs that hold or wait for nodes: what squeue's format ``shown`` says of each, or the names."""
        listed = self._slurm("squeue", "--noheader", f"--format={shown}")
        return [line.strip() for line in listed.splitlines()]

    def scancel(self, name: str | None = None) -> None:
        """Take the allocation away from the jobs whose name begins with ``name``, or from all of them.

        SkyPilot calls a cluster's job by the cluster's name and a suffix of its own.
        """
        if jobs := [job for job in self.squeue() if job.startswith(name or "")]:
            self._slurm("scancel", f"--name={','.join(jobs)}")

    def _slurm(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout


def check_machine() -> None:
    """Raise CannotHost with the reason where this machine cannot host the rig."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CannotHost("namespaces with hostnames and mounts of their own need root on Linux")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [name for name in NEEDED if shutil.which(name, path=path) is None]:
        install = f"apt-get install {' '.join(PACKAGES)}"
        raise CannotHost(f"missing programs: {', '.join(missing)}; on Debian: {install}")
    words = ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "hostname", "rig"]
    tried = subprocess.run(words, capture_output=True, text=True)
    if tried.returncode:
        raise CannotHost(f"no namespaces of our own: {tried.stderr.strip()}")


@contextmanager
def slurm_rig(folder: Path) -> Iterator[SlurmRig]:
    """A rig in ``folder``, which is new, for as long as the block runs, or this process lives."""
    me = [str(os.getpid()), str(folder)]
    words = [sys.executable, "-m", "tests.rigs.slurm", "down-after", *me]
    watcher = subprocess.Popen(words, cwd=skyhome.ROOT, start_new_session=True)
    try:
        yield up(folder)
    finally:
        down(folder)
        watcher.kill()
        watcher.wait()


def up(folder: Path) -> SlurmRig:
    """Start a rig in ``folder``, which must be new or empty, and return when its nodes take jobs."""
    check_machine()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise CannotHost(f"{folder} is not empty: a rig needs a new folder")
    control, first, second, ssh, probe = skyhome.free_ports(5)
    api = skyhome.api_port()
    ports = Ports(control, (first, second), ssh, probe, api)
    slurm_files.write(folder, ports)
    home = skyhome.make(
        folder / "home",
        config=_sky_config(folder),
        accelerators={GPU: ["Slurm"]},
        probe_url=f"http://127.0.0.1:{probe}",
        port=api,
        env={"SLURM_CONF": str(folder / "etc/slurm.conf")},
    )
    (home.folder / ".slurm").mkdir()
    (home.folder / ".slurm/config").write_text(slurm_files.ssh_config(folder, ports))
    profile = slurm_files.profile(skyhome.ROOT / "clusters/slurm.yaml", Path(sys.executable))
    (folder / "profile.yaml").write_text(profile)
    home.write_script(folder / "env.sh")
    rig = SlurmRig(folder, home)
    _wait(rig, _start(folder), (ssh, probe))
    return rig


def down(folder: Path) -> None:
    """End all that ``up`` started in ``folder``. Its files stay, to be read; once more is no mistake."""
    folder = folder.resolve()
    try:
        record = json.loads((folder / "rig.json").read_text())
    except FileNotFoundError:
        return
    try:
        process = psutil.Process(record["pid"])
        if process.create_time() == record["started"]:
            process.kill()  # its namespace, with all the daemons and jobs in it, goes at once
            process.wait(10)
    except psutil.NoSuchProcess:
        pass
    skyhome.stop(folder / "home")
    (folder / "rig.json").unlink(missing_ok=True)


def _sky_config(folder: Path) -> Mapping[str, object]:
    # GPUs alone make the price of a node with GPUs.
    pricing = {"cpu": 0.02, "memory": 0.005, "accelerators": {GPU: 2.5}}
    return {
        "slurm": {
            "allowed_clusters": [CLUSTER],
            "provision_timeout": 60,
            "pricing": pricing,
            "cluster_configs": {CLUSTER: {"tmpdir": str(folder / "local")}},
        }
    }


def _start(folder: Path) -> subprocess.Popen[bytes]:
    words = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (folder / "log/cluster.log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "bash", str(folder / "cluster.sh")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = psutil.Process(process.pid).create_time()
    (folder / "rig.json").write_text(json.dumps({"pid": process.pid, "started": started}))
    return process


def _wait(rig: SlurmRig, cluster: subprocess.Popen[bytes], ports: Sequence[int]) -> None:
    deadline = time.monotonic() + START_S
    while not _is_up(rig, ports):
        if cluster.poll() is not None or time.monotonic() > deadline:
            log = "".join(path.read_text()[-1500:] for path in (rig.folder / "log").glob("*.log"))
            down(rig.folder)
            raise RuntimeError(f"the Slurm rig did not come up\n{log}")
        time.sleep(0.1)


def _is_up(rig: SlurmRig, ports: Sequence[int]) -> bool:
    try:
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        states = rig._slurm("sinfo", "--noheader", "--Node", "--format=%t").split()
    except (OSError, RuntimeError, subprocess.TimeoutExpired):
        return False
    return states == ["idle"] * len(NODES)


def _wait_for_end(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([process], [], [])


def main() -> None:
    match sys.argv[1:]:
        case ["up", folder]:
            rig = up(Path(folder))
            print(f"source {rig.folder}/env.sh\nsky check slurm")
            print(f"nemo-sky launch tiny pretrain --cluster {rig.profile}")
        case ["down", folder]:
            down(Path(folder))
        case ["down-after", pid, folder]:
            _wait_for_end(int(pid))
            down(Path(folder))
        case _:
            sys.exit("usage: python -m tests.rigs.slurm up|down DIR")


if __name__ == "__main__":
    main()
