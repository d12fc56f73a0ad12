"""A shell on a node that SkyPilot runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.backends.sky_calls import calls

_DEBUG = "SKYPILOT_DEBUG"


def is_up(name: str) -> bool:
    """Whether the cluster ``name`` is up, that of a managed job too where the API server itself runs it."""
    with calls() as sky, _managed_shown():
        found = sky.get(sky.status(cluster_names=[name], all_users=True))
    return bool(found) and found[0]["status"].value == "UP"


def ssh_command(cluster: str) -> list[str]:
    """The command for a shell on a cluster's first node, which is a host by SkyPilot's part of the ssh
    configuration. Only SkyPilot's command line writes that, not its SDK, and below $HOME: ssh itself would
    look in the home that the system knows."""
    with calls(), _managed_shown():
        sky = Path(sys.executable).with_name("sky")
        subprocess.run([sky, "status", cluster], check=True, capture_output=True)
    written = Path.home() / ".sky" / "generated"
    key = written / "ssh-keys" / f"{cluster}.key"
    words = ["ssh", "-F", str(written / "ssh" / cluster), "-o", "LogLevel=ERROR"]
    return [*words, *(["-i", str(key)] if key.exists() else []), cluster]


@contextmanager
def _managed_shown() -> Iterator[None]:
    """SkyPilot shows the clusters of managed jobs only to who debugs it (backends/backend_utils.py)."""
    before = os.environ.get(_DEBUG)
    os.environ[_DEBUG] = "1"
    try:
        yield
    finally:
        os.environ.pop(_DEBUG) if before is None else os.environ.update({_DEBUG: before})
