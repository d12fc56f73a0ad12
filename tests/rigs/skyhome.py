"""A HOME for SkyPilot that is a rig's own: configuration, catalog, plugin, and an API server on its own port.

Nothing of the user's SkyPilot is read or changed. The first ``sky`` or ``nemo-sky`` command that is run with
the rig's environment starts the API server; ``stop`` ends it, and only it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
_PORT = "SKYPILOT_API_SERVER_LOCAL_PORT"
# Of the tests' own environment: what would lead a rig's processes to some other place.
_DROPPED = (
    "NEMO_SKY_", "SKYPILOT_", "SKY_", "AWS_", "MLFLOW_", "RAY_", "SLURM_", "XDG_", "VIRTUAL_ENV",
    "PYTHONPATH",
)  # fmt: skip


@dataclass(frozen=True)
class SkyHome:
    """``folder`` is HOME, ``port`` the API server's, ``own`` the variables that make a shell the rig's."""

    folder: Path
    port: int
    own: Mapping[str, str]

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of a command that is to use the rig."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_DROPPED)}
        return {**kept, **self.own}

    def write_script(self, path: Path) -> None:
        """A file for ``source``, so that a shell uses the rig."""
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in self.own.items() if key != "PATH"]
        path.write_text(f'export PATH={shlex.quote(_BIN)}:"$PATH"\n' + "".join(lines))


_BIN = str(Path(sys.executable).parent)


def make(
    folder: Path,
    *,
    config: Mapping[str, Any],
    accelerators: Mapping[str, Sequence[str]],
    probe_url: str,
    port: int,
    env: Mapping[str, str] | None = None,
    memory_gb: float = 6,
) -> SkyHome:
    """Write SkyPilot's files under ``folder``, which becomes HOME.

    ``config`` is ~/.sky/config.yaml; managed jobs are set to run inside the API server. ``accelerators`` maps
    each GPU type to the clouds that have it: without that catalog SkyPilot would download one. ``probe_url``
    answers HEAD whenever the rig is there (see ``plugin.py``). ``memory_gb`` is what SkyPilot takes the
    machine's memory to be: it starts job controllers by it, twelve of them on 24 GB.
    """
    from sky.skylet import constants

    sky = folder / ".sky"
    catalog = sky / "catalogs" / constants.CATALOG_SCHEMA_VERSION / "common"
    catalog.mkdir(parents=True)
    rows = [f'{name},"{list(clouds)!r}"\n' for name, clouds in accelerators.items()]
    # A catalog that is there is never fetched anew (sky/catalog/common.py of 0.14.1).
    (catalog / "accelerators.csv").write_text("AcceleratorName,Clouds\n" + "".join(rows))
    jobs = {"controller": {"consolidation_mode": True}}
    (sky / "config.yaml").write_text(yaml.safe_dump({"jobs": jobs, **config}, sort_keys=False))
    probe = {"class": "tests.rigs.plugin.Probe", "parameters": {"url": probe_url}}
    (sky / "plugins.yaml").write_text(yaml.safe_dump({"plugins": [probe]}))
    own = {
        "HOME": str(folder),
        "PATH": f"{_BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        _PORT: str(port),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "SKYPILOT_POD_MEMORY_GB_LIMIT": str(memory_gb),
        **(env or {}),
    }
    return SkyHome(folder, port, own)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def api_port() -> int:
    """A port for an API server. Its queue listens too, on a port that SkyPilot derives from this one
    (server/requests/queues/mp_queue.py): both must be free."""
    while True:
        (port,) = free_ports(1)
        queue = 50000 + (11 + port - 46580) % 10000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", queue))
            return port


def stop(home: Path) -> None:
    """End the API server of this HOME, its workers and its job controllers, and clients that wait for them.

    They are killed, not asked: a rig's state is thrown away. Once more until none is left, because a server
    may start a controller while it is looked for.
    """
    while found := _processes(home):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=10)


def _processes(home: Path) -> list[psutil.Process]:
    """Those of this HOME. Workers overwrite their environment with a title, but have its files open."""
    found = []
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid in mine or process.status() == psutil.STATUS_ZOMBIE:
                continue
            opened = [Path(file.path) for file in process.open_files()]
            told = {"HOME": str(home), "PYTHONPATH": str(ROOT)}.items() <= process.environ().items()
            is_python = "python" in Path(process.exe()).name
            if is_python and (told or any(path.is_relative_to(home / ".sky") for path in opened)):
                found.append(process)
    return found
