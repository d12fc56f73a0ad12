"""Where runs run. Each backend is a module with the four functions of ``launcher.backends.base.Backend``."""

from __future__ import annotations

from launcher.backends.base import Attempt, Backend, State
from launcher.errors import Refused

__all__ = ["Attempt", "Backend", "State", "get"]


def get(name: str) -> Backend:
    """The backend of a cluster profile. Raises Refused for one that cannot launch."""
    if name == "local":
        import launcher.backends.local as local

        return local
    raise Refused(
        f"this version launches on this machine only, not through {name!r}",
        hint="`nemo-sky render FAMILY STAGE --cloud NAME` prints the task; give it to `sky launch`",
    )
