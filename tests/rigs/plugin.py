"""A SkyPilot server plugin for rigs: the place it asks whether the network is up is the rig itself.

Before every decision about a managed job SkyPilot asks two public addresses for a sign of life
(``_TEST_IP_LIST`` of ``sky/backends/backend_utils.py`` in 0.14.1) and waits as long as neither answers. A rig
has no internet to ask. Loaded through ``~/.sky/plugins.yaml`` of the rig's HOME.
"""

from __future__ import annotations

from typing import Any

from sky.server import plugins


class Probe(plugins.BasePlugin):  # type: ignore[misc]
    """``url`` must answer HEAD for as long as the rig's network is to count as up."""

    def __init__(self, url: str) -> None:
        self._url = url

    def install(self, extension_context: Any) -> None:
        from sky.backends import backend_utils

        backend_utils._TEST_IP_LIST = [self._url]
