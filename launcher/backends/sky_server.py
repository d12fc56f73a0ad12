"""SkyPilot's API server as a process of this machine."""

from __future__ import annotations

import os

import psutil

from launcher.backends import sky_calls


def runs_controllers() -> bool | None:
    """Whether the API server runs managed jobs inside itself, as it decided when it started; what its
    configuration says since, it does not look at (``is_jobs_consolidation_mode`` of SkyPilot 0.14.1). None
    where it is no process of this user here: it is elsewhere, maybe behind a tunnel, or not running.

    Raises Refused when SkyPilot cannot be asked.
    """
    with sky_calls.calls():
        from sky.jobs import utils
        from sky.server import common

        if not common.is_api_server_local():
            return None
        port = f"--port={common.get_local_api_server_port()}"
        for process in psutil.process_iter(["cmdline", "uids"]):
            words, uids = process.info["cmdline"] or [], process.info["uids"]
            is_server = common.API_SERVER_CMD in " ".join(words) and port in words
            if is_server and uids and uids.real == os.getuid():
                return bool(utils.is_consolidation_mode())
    return None
