"""One emulated instance: namespaces over the rig's disk image, an sshd, a leg on the rig's bridge.

Its processes live in a pid namespace: SkyPilot stops Ray by process name, and killing the namespace's
PID 1 kills all of them at once, as losing a machine does.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tests.rigs.aws import folders, metadata, network
from tests.rigs.aws.image import INIT, PATH, USER, Image, binds

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_BOOT = """\
set -u
if [ ! -e /var/lib/rig-first-boot ]; then
  touch /var/lib/rig-first-boot
  ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
{first}
fi
mkdir -p /run/sshd
/usr/sbin/sshd -D -e 2>>/var/log/sshd.log &
while :; do sleep infinity & wait $!; done
"""


class Machine:
    """An instance's host. Its disk outlives ``kill``; ``delete`` removes that too."""

    def __init__(self, folder: Path, where: network.Network, image: Image, facts: metadata.Facts) -> None:
        self.facts = facts
        self.notice: datetime | None = None
        self._folder = folders.make(folder)
        self._network = where
        self._image = image
        self._leg = f"v{facts.instance_id[-12:]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._service: metadata.Service | None = None
        self._pid = 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, user_data: str, endpoint: str) -> None:
        """Boot. Must be called from a thread that lives as long as the rig: the machine dies with it."""
        (self._folder / "go").unlink(missing_ok=True)
        (self._folder / "boot.sh").write_text(_BOOT.format(first=first_boot(user_data, endpoint)))
        layers = ":".join(map(str, self._image.layers))
        name = f"ip-{self.facts.address.replace('.', '-')}"
        namespaces = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL"]
        with (self._folder / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                ["unshare", *namespaces, "bash", str(INIT), str(self._folder), layers, name],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                env={"PATH": PATH, "LANG": "C.UTF-8", "RIG_BINDS": "\n".join(map(str, binds()))},
                preexec_fn=_die_with_parent,
            )
        self._pid = self._first_child()
        network.connect(self._network, self._pid, self._leg, self.facts.address)
        self._service = metadata.Service(self._pid, self.facts, lambda: self.notice)
        (self._folder / "go").touch()

    def kill(self) -> None:
        """End every process of the machine at once; nothing of it may save anything."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self._pid or self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._process = None
        if self._service:
            self._service.close()
            self._service = None
        network.disconnect(self._leg)

    def delete(self) -> None:
        self.kill()
        folders.remove(self._folder)

    def _first_child(self) -> int:
        """The process that is PID 1 inside. ``unshare`` has one child."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            if found := children.read_text().split():
                return int(found[0])
            time.sleep(0.01)
        raise RuntimeError(f"{self.facts.instance_id}: {(self._folder / 'console.log').read_text()[-2000:]}")


def first_boot(user_data: str, endpoint: str) -> str:
    """Shell lines for what SkyPilot asks of cloud-init: users with their keys, files, commands."""
    wanted: dict[str, Any] = yaml.safe_load(user_data) if user_data.startswith("#cloud-config") else {}
    settings = f"SetEnv AWS_ENDPOINT_URL={endpoint} AWS_DEFAULT_REGION=us-east-1\n"
    lines = [f"printf %s {shlex.quote(settings)} > /etc/ssh/sshd_config.d/rig.conf"]
    for user in wanted.get("users", []):
        if user["name"] != USER:
            raise RuntimeError(f"the image has no user {user['name']!r}")
        keys = shlex.quote("\n".join(key.strip() for key in user.get("ssh_authorized_keys", [])) + "\n")
        lines += [
            f"install -d -m 700 -o {USER} -g {USER} /home/{USER}/.ssh",
            f"printf %s {keys} >> /home/{USER}/.ssh/authorized_keys",
            f"chown {USER}:{USER} /home/{USER}/.ssh/authorized_keys",
            f"chmod 600 /home/{USER}/.ssh/authorized_keys",
        ]
    for file in wanted.get("write_files", []):
        path = shlex.quote(file["path"])
        lines.append(f'mkdir -p "$(dirname {path})" && printf %s {shlex.quote(file["content"])} > {path}')
    for command in wanted.get("runcmd") or []:
        lines.append(command if isinstance(command, str) else shlex.join(command))
    return "\n".join(f"  {line}" for line in lines)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
