"""Where runs run. Each backend is a module with the functions of ``launcher.backends.base.Backend``."""

from __future__ import annotations

from launcher.backends.base import Attempt, Backend, State

__all__ = ["Attempt", "Backend", "State", "get"]


def get(name: str) -> Backend:
    """The backend of a cluster profile, one of ``launcher.clusters.BACKENDS``."""
    if name == "local":
        import launcher.backends.local as local

        return local
    if name == "fake":
        import launcher.backends.fake as fake

        return fake
    import launcher.backends.sky as sky

    return sky
