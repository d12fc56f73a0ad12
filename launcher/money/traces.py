"""Recorded spot markets: windows of availability and price per zone, tick by tick.

The file's form is documented in ``docs/spot-policy.md``: ``gap_seconds``, ``zones``, and ``windows`` with a
``start_time``, ``available`` (one character per tick, ``1`` = an instance could be had) and ``price``
(run-length encoded ``[[ticks, dollars per hour], ...]``) per zone. ``.json`` and ``.json.gz`` are read.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Window:
    """One stretch of a market. ``up`` is bool and ``price`` $/h, both of shape (zones, ticks)."""

    start: datetime
    up: NDArray[np.bool_]
    price: NDArray[np.float64]

    @property
    def ticks(self) -> int:
        return int(self.up.shape[1])


@dataclass(frozen=True)
class Market:
    """Windows over the same zones. ``gap`` is the length of a tick in seconds."""

    gap: float
    zones: tuple[str, ...]
    windows: tuple[Window, ...]

    def only(self, zones: Sequence[str]) -> Market:
        """The same windows seen by a job that may use only ``zones`` (UserError when one is unknown)."""
        for zone in zones:
            if zone not in self.zones:
                raise UserError(f"no zone {zone!r} in the windows{did_you_mean(zone, self.zones)}")
        index = [self.zones.index(zone) for zone in zones]
        cut = tuple(replace(w, up=w.up[index], price=w.price[index]) for w in self.windows)
        return Market(self.gap, tuple(zones), cut)


def read(path: Path) -> Market:
    """The windows of a file, or of every ``*.json`` and ``*.json.gz`` in a folder.

    Raises UserError naming the file, the window and the zone that is wrong.
    """
    if path.is_dir():
        files = sorted([*path.glob("*.json"), *path.glob("*.json.gz")])
        if not files:
            raise UserError(f"no .json or .json.gz windows in {path}")
        parts = [_read_file(file) for file in files]
        for file, part in zip(files, parts, strict=True):
            if (part.gap, part.zones) != (parts[0].gap, parts[0].zones):
                raise UserError(f"ticks or zones differ from those of {files[0].name}", where=str(file))
        return replace(parts[0], windows=tuple(w for part in parts for w in part.windows))
    if not path.is_file():
        raise UserError(f"no windows at {path}")
    return _read_file(path)


def _read_file(path: Path) -> Market:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            raw = json.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"not readable as JSON: {error}", where=str(path)) from None
    try:
        gap, zones = float(raw["gap_seconds"]), tuple(str(zone) for zone in raw["zones"])
        listed = list(raw["windows"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"gap_seconds, zones or windows: {error!r}", where=str(path)) from None
    if gap <= 0 or not zones or not listed:
        raise UserError("needs gap_seconds above 0, a zone and a window", where=str(path))
    return Market(gap, zones, tuple(_window(w, zones, f"{path}: window {i}") for i, w in enumerate(listed)))


def _window(raw: Any, zones: Sequence[str], where: str) -> Window:
    try:
        start = datetime.fromisoformat(raw["start_time"])
        up = [np.frombuffer(raw["available"][zone].encode(), np.uint8) for zone in zones]
        runs = [np.asarray(raw["price"][zone], float).reshape(-1, 2) for zone in zones]
        price = [np.repeat(run[:, 1], run[:, 0].astype(int)) for run in runs]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"start_time, available or price: {error!r}", where=where) from None
    for zone, bits, prices in zip(zones, up, price, strict=True):
        if not len(bits) or not np.isin(bits, (48, 49)).all():
            raise UserError(f"available of {zone} must be a string of 0 and 1", where=where)
        if len(bits) != len(up[0]) or len(prices) != len(bits):
            raise UserError(f"{zone}: {len(bits)} ticks of available, {len(prices)} of price", where=where)
        if not (np.isfinite(prices).all() and (prices > 0).all()):
            raise UserError(f"{zone}: a price is missing or not above 0", where=where)
    return Window(start, np.stack(up) == 49, np.stack(price))


def write(market: Market, path: Path) -> None:
    """Write windows in the form that ``read`` takes (gzipped when the name ends in ``.gz``)."""
    windows = [
        {
            "start_time": window.start.isoformat(),
            "available": {z: "".join("01"[int(v)] for v in window.up[i]) for i, z in enumerate(market.zones)},
            "price": {z: _runs(window.price[i]) for i, z in enumerate(market.zones)},
        }
        for window in market.windows
    ]
    text = json.dumps({"gap_seconds": market.gap, "zones": list(market.zones), "windows": windows})
    # No time of writing inside: the same windows give the same bytes.
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())


def _runs(prices: NDArray[np.float64]) -> list[list[float]]:
    edges = [0, *(np.nonzero(np.diff(prices))[0] + 1).tolist(), len(prices)]
    return [[b - a, float(prices[a])] for a, b in itertools.pairwise(edges)]
