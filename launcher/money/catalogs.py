"""SkyPilot's price catalogs, read as they lie on this machine: no SkyPilot, no server, no network.

    ~/.sky/catalogs/v8/CLOUD/vms.csv     one line per instance type and place; prices in dollars per hour

A full catalog of one cloud has some 50,000 lines. Only the lines that hold a word asked for are parsed, so
that all clouds together take a fraction of a second.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import Refused

FOLDER_ENV = "NEMO_SKY_CATALOGS"
NEEDED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Region", "Price")
DIGITS = 6
"""Prices are kept to a millionth of a dollar, so that sums and products of them are exact to the cent."""

_MEMORY = re.compile(r"sizeinmib\W+([\d.]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """One line. A price of None is unknown or not offered; ``free`` says that the on-demand and the spot
    price stand there as 0, which only a part of a price can be (GCP's hosts)."""

    instance: str
    gpu: str
    count: float
    cpus: float
    memory: float
    gpu_gib: float | None
    region: str
    zone: str | None
    on_demand: float | None
    spot: float | None
    free: tuple[bool, bool]
    arch: str


def folder() -> Path:
    """Where the catalogs lie: ``$NEMO_SKY_CATALOGS``, else where SkyPilot keeps them."""
    if named := os.environ.get(FOLDER_ENV):
        return Path(named).expanduser()
    return Path(os.environ.get("SKY_RUNTIME_DIR") or "~").expanduser() / ".sky/catalogs/v8"


def clouds(root: Path) -> list[str]:
    """The clouds that have a catalog, sorted."""
    return sorted(path.parent.name for path in root.glob("*/vms.csv"))


def read(root: Path, cloud: str, words: Iterable[str] | None = None) -> list[Row]:
    """The lines of a cloud's catalog that hold any of ``words`` (in any case), or all lines.

    A line that is not whole, or whose count is no number, is left out. Raises Refused for a file that is
    absent or is no catalog.
    """
    path = root / cloud / "vms.csv"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Refused(f"cannot read the catalog of {cloud}: {error.strerror}", where=str(path)) from None
    end = data.find(b"\n")
    header = _fields([data if end < 0 else data[:end]])
    columns = {name.strip().lstrip("\ufeff"): at for at, name in enumerate(header[0] if header else ())}
    if missing := [name for name in NEEDED if name not in columns]:
        raise Refused(f"not a catalog of SkyPilot: no column {missing[0]}", where=f"{path}:1")
    lines = _lines(data, end + 1, words) if end >= 0 else []
    return [
        row
        for fields in _fields(lines)
        if len(fields) == len(columns) and (row := _row(cloud, fields, columns))
    ]


def price(text: str) -> float | None:
    """Dollars per hour; None for what is no price: nothing, not a number, infinite, zero or below."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    rounded = round(value, DIGITS)
    return rounded if rounded > 0 else None


def _lines(data: bytes, start: int, words: Iterable[str] | None) -> list[bytes]:
    if words is None:
        return data[start:].splitlines()
    folded = data.lower()
    found: dict[int, bytes] = {}
    for word in {word.lower().encode() for word in words}:
        at = folded.find(word, start)
        while at >= 0:
            begin, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
            end = len(data) if end < 0 else end
            found[begin] = data[begin:end]
            at = folded.find(word, end)
    return [found[begin] for begin in sorted(found)]


def _fields(lines: Sequence[bytes]) -> list[list[str]]:
    """Each line on its own: a quote that is never closed spoils one line, not all that follow."""
    texts = [line.decode("utf-8", "replace").rstrip("\r") for line in lines]
    try:
        parsed = list(csv.reader(texts))
    except csv.Error:
        parsed = []
    return parsed if len(parsed) == len(texts) else [fields for text in texts for fields in _one(text)]


def _one(text: str) -> list[list[str]]:
    try:
        return list(csv.reader([text]))
    except csv.Error:
        return []


def _row(cloud: str, fields: Sequence[str], columns: Mapping[str, int]) -> Row | None:
    def cell(name: str) -> str:
        at = columns.get(name)
        return "" if at is None else fields[at].strip()

    count = _number(cell("AcceleratorCount"))
    region = cell("Region")
    if count is None or count < 0:
        return None
    paid, spot = cell("Price"), cell("SpotPrice")
    return Row(
        instance=cell("InstanceType"),
        gpu=cell("AcceleratorName"),
        count=count,
        cpus=_number(cell("vCPUs")) or 0.0,
        memory=_number(cell("MemoryGiB")) or 0.0,
        gpu_gib=_gpu_gib(cloud, cell("GpuInfo"), count),
        region=region,
        zone=cell("AvailabilityZone") or None,
        on_demand=price(paid),
        spot=price(spot),
        free=(_number(paid or "x") == 0, _number(spot or "x") == 0),
        arch=cell("Arch"),
    )


def _number(text: str) -> float | None:
    """0 for nothing, None for what is no number."""
    try:
        value = float(text or 0)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _gpu_gib(cloud: str, info: str, count: float) -> float | None:
    """Memory of one GPU. PrimeIntellect and Vast give that of all together, RunPod gives GiB as MiB."""
    found = _MEMORY.search(info)
    size = _number(found[1]) if found else None
    if not size:
        return None
    if cloud in ("primeintellect", "vast") and count >= 1:
        size /= count
    return size if size < 2048 else size / 1024
