"""A shell on a node that SkyPilot runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launcher.backends.sky_calls import calls


def is_up(name: str) -> bool:
    """Whether the cluster ``name`` is up."""
    with calls() as sky:
        found = sky.get(sky.status(cluster_names=[name], all_users=True))
    return bool(found) and found[0]["status"].value == "UP"


def ssh_command(cluster: str) -> list[str]:
    """The command for a shell on a cluster's first node, which is a host by SkyPilot's part of the ssh
    configuration. Only SkyPilot's command line writes that, not its SDK, and below $HOME: ssh itself would
    look in the home that the system knows."""
    with calls():
        sky = Path(sys.executable).with_name("sky")
        subprocess.run([sky, "status", cluster], check=True, capture_output=True)
    written = Path.home() / ".sky" / "generated"
    key = written / "ssh-keys" / f"{cluster}.key"
    words = ["ssh", "-F", str(written / "ssh" / cluster), "-o", "LogLevel=ERROR"]
    return [*words, *(["-i", str(key)] if key.exists() else []), cluster]
