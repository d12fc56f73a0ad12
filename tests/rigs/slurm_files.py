"""The Slurm rig's files: configuration of its daemons, and scripts of its namespaces and nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CLUSTER = "rig"  # SkyPilot's region
PARTITION = "gpu"  # SkyPilot's zone
GPU, GPUS = "H100", 8
NODES = ("n1", "n2")


@dataclass(frozen=True)
class Ports:
    """TCP ports on loopback, all free when they were chosen."""

    control: int
    nodes: tuple[int, ...]
    ssh: int
    probe: int
    api: int

    def address(self, node: int) -> str:
        """A loopback address for each node that no other rig has at the same time: nodes' own daemons, such
        as a rendezvous, bind it."""
        return f"127.{self.control >> 8}.{self.control & 255}.{node + 1}"


def write(folder: Path, ports: Ports) -> None:
    """Write everything that the daemons and nodes read."""
    for name in ("etc", "bin", "log", "state", "spool", "dev", "munge", "shared/home", "local", "empty"):
        (folder / name).mkdir(parents=True)
    for node in NODES:
        (folder / "nodes" / node).mkdir(parents=True)
        (folder / "spool" / node).mkdir()
    for number in range(GPUS):
        # Slurm sets CUDA_VISIBLE_DEVICES for character devices alone; these are /dev/null's twins.
        os.mknod(folder / "dev" / f"gpu{number}", 0o020666, os.makedev(1, 3))
    _file(folder / "munge" / "key", os.urandom(1024), 0o400)
    _file(folder / "etc/slurm.conf", _slurm_conf(folder, ports))
    _file(
        folder / "etc/gres.conf",
        f"NodeName={','.join(NODES)} Name=gpu Type={GPU} File={folder}/dev/gpu[0-{GPUS - 1}]\n",
    )
    _keys(folder)
    _file(folder / "etc/sshd_config", _sshd_config(folder, ports))
    _file(folder / "etc/hosts", _hosts(ports))
    home = folder / "shared/home"
    users = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
    _file(folder / "etc/passwd", "\n".join([f"root:x:0:0:root:{home}:/bin/bash", *users]) + "\n")
    _file(folder / "etc/profile", _PROFILE.format(bin=folder / "bin"))
    _file(folder / "bin/curl", _CURL.format(uv=folder / "bin/uv"), 0o755)
    _file(folder / "bin/uv", _uv(), 0o755)
    _file(folder / "cluster.sh", _cluster(folder, ports), 0o755)
    _file(folder / "node.sh", _NODE.format(folder=folder), 0o755)


def ssh_config(folder: Path, ports: Ports) -> str:
    """SkyPilot's ~/.slurm/config: one login host per cluster, in ssh's own syntax."""
    return (
        f"Host {CLUSTER}\n    HostName 127.0.0.1\n    Port {ports.ssh}\n    User root\n"
        f"    IdentityFile {folder}/etc/login_key\n    IdentitiesOnly yes\n"
    )


def _file(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def _keys(folder: Path) -> None:
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "nemo-sky-rig", "-f"]
    for name in ("host_key", "login_key"):
        subprocess.run([*make, str(folder / "etc" / name)], check=True)
    (folder / "etc/login_key.pub").rename(folder / "etc/authorized_keys")


def _slurm_conf(folder: Path, ports: Ports) -> str:
    addresses = ",".join(ports.address(number) for number in range(len(NODES)))
    return f"""\
ClusterName={CLUSTER}
SlurmctldHost=login(127.0.0.1)
SlurmctldPort={ports.control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/spool/%n/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# Nodes say that they are larger than this machine is.
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=10
MinJobAge=300
SlurmdTimeout=300
NodeName={",".join(NODES)} NodeAddr={addresses} Port={",".join(map(str, ports.nodes))} \
CPUs=64 RealMemory=524288 Gres=gpu:{GPU}:{GPUS} State=UNKNOWN
PartitionName={PARTITION} Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
"""


def _sshd_config(folder: Path, ports: Ports) -> str:
    return f"""\
Port {ports.ssh}
ListenAddress 127.0.0.1
HostKey {folder}/etc/host_key
PidFile none
AuthorizedKeysFile {folder}/etc/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
StrictModes no
MaxSessions 200
MaxStartups 200
SetEnv SLURM_CONF={folder}/etc/slurm.conf
Subsystem sftp internal-sftp
"""


def _hosts(ports: Ports) -> str:
    nodes = [f"{ports.address(number)} {name}\n" for number, name in enumerate(NODES)]
    return "127.0.0.1 localhost login\n" + "".join(nodes)


def _cluster(folder: Path, ports: Ports) -> str:
    """PID 1 of the rig's namespaces. The kernel ends all that is in them when it ends."""
    return f"""\
#!/bin/bash
set -euo pipefail
hostname login
for name in hosts passwd profile; do mount --bind {folder}/etc/$name /etc/$name; done
mkdir -p /run/sshd
export SLURM_CONF={folder}/etc/slurm.conf
/usr/sbin/munged --foreground --force --key-file={folder}/munge/key --socket={folder}/munge/socket \\
  --pid-file={folder}/munge/pid --log-file={folder}/munge/log --seed-file={folder}/munge/seed &
until [ -S {folder}/munge/socket ]; do sleep 0.05; done
slurmctld -D -c &
for node in {" ".join(NODES)}; do
  unshare --uts --mount --pid --fork --kill-child --mount-proc bash {folder}/node.sh $node &
done
/usr/sbin/sshd -D -e -f {folder}/etc/sshd_config &
{sys.executable} -S -E -m http.server {ports.probe} --bind 127.0.0.1 --directory {folder}/empty 2>/dev/null &
wait -n
"""


# PID 1 of a node: a hostname of its own, because SkyPilot finds a node's address by it, and node-local disk.
_NODE = """\
#!/bin/bash
set -euo pipefail
hostname "$1"
mount --bind {folder}/nodes/"$1" {folder}/local
slurmd -D -N "$1" &
wait
"""

# Login shells set PATH anew; the rig's programs come first in all of them.
_PROFILE = """\
export PATH={bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""

# SkyPilot fetches uv for every cluster from its maker's site: this one request is answered here.
_CURL = """\
#!/bin/bash
case " $* " in
  *" https://astral.sh/uv/install.sh "*)
    echo 'mkdir -p "$UV_INSTALL_DIR" && ln -sf {uv} "$UV_INSTALL_DIR/uv"' ;;
  *) exec /usr/bin/curl "$@" ;;
esac
"""


def _uv() -> str:
    """What SkyPilot asks of uv on a node, with the project's installed packages in place of PyPI's.

    SkyPilot installs itself in an environment of its own on every cluster. Here that environment sees the
    packages of the virtual environment which runs the tests: the same SkyPilot, and nothing is downloaded.
    """
    base = Path(sys.executable).resolve()
    library = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    return f"""\
#!/bin/bash
set -euo pipefail
make_venv() {{
  while [ $# -gt 0 ]; do
    case "$1" in --python) shift ;; -*) ;; *) target="$1" ;; esac
    shift
  done
  mkdir -p "$target/bin" "$target/{library}"
  ln -sfn {base} "$target/bin/python"
  ln -sfn python "$target/bin/python3"
  printf 'home = {base.parent}\\ninclude-system-site-packages = false\\n' >"$target/pyvenv.cfg"
  echo {sysconfig.get_path("purelib")} >"$target/{library}/rig.pth"
  cat >"$target/bin/activate" <<'X'
VIRTUAL_ENV="$(cd "$(dirname "${{BASH_SOURCE[0]}}")/.." && pwd)"
export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"
deactivate() {{ :; }}
X
  printf '#!/bin/bash\\nexec "$(dirname "$0")/python" -m pip "$@"\\n' >"$target/bin/pip"
  chmod 755 "$target/bin/pip"
}}
case "$1" in
  -V) echo "uv 0 (stand-in of the rig)" ;;
  venv) make_venv "${{@:2}}" ;;
  pip) ;;
  run) PATH="$VIRTUAL_ENV/bin:$PATH" exec "${{@:2}}" ;;
  *) echo "the rig's uv does not know: $*" >&2; exit 2 ;;
esac
"""


def profile(extends: Path, python: Path) -> str:
    """A cluster profile that launches on the rig, for ``nemo-sky launch --cluster PATH``."""
    return f"""\
extends: {extends}
infra: slurm/{CLUSTER}/{PARTITION}
containers: false
# The nodes are on this machine: they use the environment that is installed already.
python: current
activate: source {python.parent}/activate
shared_filesystem: true
price_per_hour: 20
"""
