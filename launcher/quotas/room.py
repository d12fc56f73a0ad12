"""What a task needs of a region, and what the account's quota there leaves for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.money.want import Market


@dataclass(frozen=True)
class Need:
    """One instance type in one region that could run a task: the vCPUs and GPUs of all its nodes.

    ``gpu`` is None for nodes without.
    """

    region: str
    market: Market
    instance: str
    cpus: int
    gpu: str | None
    gpus: int


@dataclass(frozen=True)
class Room:
    """In ``region`` the quota ``name`` lets the account run ``limit`` of ``unit`` (vCPUs or GPUs), of which
    ``used`` are taken (0 where the cloud does not tell); ``needed`` are asked for. ``more``: how to get
    more."""

    region: str
    market: Market
    instance: str
    needed: int
    limit: int
    name: str
    unit: str
    more: str
    used: int = 0

    @property
    def free(self) -> int:
        return max(self.limit - self.used, 0)

    @property
    def enough(self) -> bool:
        return self.free >= self.needed


@dataclass(frozen=True)
class Untold:
    """Why the quota of one place or more is unknown, and how to mend that. ``market`` None: of either."""

    why: str
    hint: str | None = None
    market: Market | None = None


@dataclass(frozen=True)
class Told:
    """What a cloud says of all places that a task may go to. Both empty: it is not asked."""

    rooms: tuple[Room, ...] = ()
    untold: tuple[Untold, ...] = ()


def best(found: Sequence[Room]) -> Room:
    """The region nearest to what is needed."""
    return max(found, key=lambda room: room.free / room.needed)


def tightest(found: Sequence[Room]) -> Room:
    """Of several quotas that all hold for one instance the one that leaves least."""
    return min(found, key=lambda room: room.free)
