"""The plugin of SkyPilot's API server that adds the recovery strategy NEMO_SKY.

Named in the server's ``~/.sky/plugins.yaml`` by ``nemo-sky plugin install``. SkyPilot imports this module in
the server, in its request executors and in every jobs controller, so it stays light.
"""

from __future__ import annotations

from typing import Any

from sky.server import plugins

from launcher import __version__
from launcher.skyplugin.names import KEY, NAME, UNCONSOLIDATED


class Plugin(plugins.BasePlugin):  # type: ignore[misc]
    """Registers the strategy, and the key of ``job_recovery`` that carries its terms."""

    @property
    def name(self) -> str:
        """What ``nemo-sky plugin status`` reads from the server. A controller on a machine of its own does
        not have the plugin."""
        from sky.jobs import utils

        return NAME if utils.is_consolidation_mode() else UNCONSOLIDATED

    @property
    def version(self) -> str:
        return __version__

    def install(self, extension_context: Any) -> None:
        """Called several times in one process: registering is by import, and so done once."""
        from sky.utils import schemas

        schemas.register_job_recovery_property(KEY, {"type": "object", "required": ["run", "artifacts"]})
        import launcher.skyplugin.strategy  # noqa: F401
