"""Shards: the work of a preparation stage in pieces that are redone whole or not at all.

Which rows go into which shard is decided before anything is read, from file names, sizes and the seed.
Each shard is a pure function of its units and the settings, written under temporary names; its receipt is
written last. A run that was killed finds the receipts and makes only what is missing: the same bytes. SIGTERM
ends a run with status 75, "try again". Ray Data spreads the shards over the cluster's CPUs; no shard is held
in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from recipes.bridge.common import ConfigError, require, write_text
from recipes.prep.sources import Source, Unit, plain, units

# A piece smaller than this is not worth a seek.
_SMALLEST = 256_000
_LARGEST = 64_000_000

# The status of a run that a signal ended: EX_TEMPFAIL, the agent's own.
STOPPED = 75
# Only names of shards and receipts pass through Ray's object store; this is the least that Ray takes.
_OBJECT_STORE = 80_000_000

# Given a shard's plain description, write its files and return what was counted.
Maker = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Shard:
    """``number`` counts within the source; ``digest`` stands for all that decides the content."""

    source: str
    number: int
    units: tuple[Unit, ...]
    digest: str


@dataclass
class Totals:
    """What all shards of a source counted: numbers by name, and rows left out by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)


class Stopped(SystemExit):
    """SIGTERM or SIGINT came: what is done is on disk, and the process ends with status 75."""


def temporary(target: Path) -> Path:
    """The name of a file that is being written. It begins with a dot, and is this process's own: a worker
    that outlives its run cannot write into the next one's file."""
    return target.with_name(f".{target.name}.{os.getpid()}")


def uniform(seed: int, key: str | bytes) -> float:
    """A number in [0, 1) that depends on nothing but ``seed`` and ``key``."""
    hashed = hashlib.blake2b(f"{seed}\0".encode(), digest_size=8)
    hashed.update(key if isinstance(key, bytes) else key.encode(errors="surrogatepass"))
    return (int.from_bytes(hashed.digest(), "big") >> 11) / 2**53  # as many bits as a float holds: never 1


def split_of(seed: int, key: str | bytes, valid: float, test: float) -> str:
    """By content, so that two copies of a document never stand on both sides."""
    at = uniform(seed, key)
    if at < valid:
        return "valid"
    return "test" if at < valid + test else "train"


def plan(
    sources: list[Source], count: int, seed: int, settings: Mapping[str, Any], largest: int | None = None
) -> list[Shard]:
    """About ``count`` shards in all, to each source as its bytes; at least one each, and more where one
    would have over ``largest`` bytes.

    ``settings`` are what else decides the bytes: the tokenizer, the splits.
    """
    require(sources, "sources: there must be at least one")
    names = [source.name for source in sources]
    require(len(set(names)) == len(names), f"sources: two have the same name: {', '.join(sorted(names))}")
    listed = {source.name: units(source, _LARGEST) for source in sources}
    total = sum(unit.size for pieces in listed.values() for unit in pieces)
    shards: list[Shard] = []
    for source in sources:
        size = sum(unit.size for unit in listed[source.name])
        wanted = max(1, round(count * size / max(total, 1)), -(-size // largest) if largest else 1)
        pieces = units(source, min(_LARGEST, max(_SMALLEST, size // (4 * wanted) + 1)))
        pieces.sort(key=lambda unit: (uniform(seed, f"{unit.name}\0{unit.start}"), unit.name, unit.start))
        for number, mine in enumerate(_dealt(pieces, wanted)):
            decides = [vars(source), [vars(unit) for unit in mine], seed, dict(settings)]
            digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
            shards.append(Shard(source.name, number, tuple(mine), digest))
    return shards


def _dealt(pieces: list[Unit], count: int) -> list[list[Unit]]:
    """In turn, each to the shard that has the fewest bytes so far; empty shards are left out."""
    hands: list[list[Unit]] = [[] for _ in range(count)]
    sizes = [0] * count
    for piece in pieces:
        at = min(range(count), key=lambda index: (sizes[index], index))
        hands[at].append(piece)
        sizes[at] += piece.size or 1
    return [hand for hand in hands if hand]


def make(
    shards: list[Shard], folder: Path, maker: Maker, context: Mapping[str, Any]
) -> tuple[dict[str, Totals], list[dict[str, Any]]]:
    """Make every shard that has no receipt in ``folder``/.receipts; Ray must be up.

    ``maker`` gets the shard's fields, ``context`` and ``folder``; it writes files under the names of
    ``temporary`` and returns ``counts``, ``bad`` and ``files`` (path relative to ``folder`` -> bytes).
    Returns totals by source, and all receipts in the order of the shards. Raises ConfigError for the first
    bad row under ``on_bad: fail``, and Stopped on a signal.
    """
    for path in folder.rglob(".*"):
        if path.is_file():  # what a killed run was writing
            path.unlink(missing_ok=True)
    receipts: dict[tuple[str, int], dict[str, Any]] = {}
    missing = []
    for shard in shards:
        found = _receipt(folder, shard)
        if found:
            receipts[shard.source, shard.number] = found
        else:
            missing.append(shard)
    if receipts:
        print(f"{len(receipts)} of {len(shards)} shards are there already", flush=True)
    progress = Progress(sum(unit.size for shard in missing for unit in shard.units))
    try:
        for result in _made(missing, folder, maker, context):
            receipts[result["source"], result["number"]] = result
            progress.add(result["input_bytes"])
    except Stopped:
        kept = sum(_receipt(folder, shard) is not None for shard in shards)
        print(f"stopped: {kept} of {len(shards)} shards are saved, the same run goes on there", flush=True)
        raise
    ordered = [receipts[shard.source, shard.number] for shard in shards]
    totals: dict[str, Totals] = {}
    for receipt in ordered:
        total = totals.setdefault(receipt["source"], Totals())
        total.counts.update(receipt["counts"])
        total.bad.update(receipt["bad"])
    _report(totals, ordered)
    return totals, ordered


def _made(
    missing: list[Shard], folder: Path, maker: Maker, context: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    if not missing:
        return
    import ray.data

    tasks = [
        {
            "task": json.dumps(
                {
                    "source": shard.source,
                    "number": shard.number,
                    "digest": shard.digest,
                    "units": [plain(unit) for unit in shard.units],
                    "folder": str(folder),
                    **context,
                }
            )
        }
        for shard in missing
    ]
    data = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(_one, fn_args=[maker], num_cpus=1)
    for row in data.iter_rows():
        result: dict[str, Any] = json.loads(row["receipt"])
        require("refused" not in result, result.get("refused", ""))
        yield result


def _one(row: dict[str, str], maker: Maker) -> dict[str, str]:
    """In a Ray worker: one shard, its files first and its receipt last."""
    task = json.loads(row["task"])
    folder = Path(task["folder"])
    try:
        receipt = maker(task)
    except ConfigError as error:  # as a value: what Ray makes of an exception has lost its cause
        return {"receipt": json.dumps({"refused": str(error)})}
    for name in receipt["files"]:
        target = folder / name
        with temporary(target).open("rb+") as file:
            os.fsync(file.fileno())
        temporary(target).replace(target)
    receipt = {
        **receipt,
        "source": task["source"],
        "number": task["number"],
        "digest": task["digest"],
        "input_bytes": sum(unit["size"] for unit in task["units"]),
    }
    write_text(_receipt_path(folder, task["source"], task["number"]), json.dumps(receipt) + "\n")
    return {"receipt": json.dumps(receipt)}


def _receipt_path(folder: Path, source: str, number: int) -> Path:
    return folder / ".receipts" / f"{source}-{number:06d}.json"


def _receipt(folder: Path, shard: Shard) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(_receipt_path(folder, shard.source, shard.number).read_text())
    except (OSError, ValueError):
        return None
    if found.get("digest") != shard.digest:
        return None
    sizes = {name: (folder / name).stat().st_size for name in found["files"] if (folder / name).is_file()}
    return found if sizes == found["files"] else None


def _report(totals: Mapping[str, Totals], receipts: list[dict[str, Any]]) -> None:
    for source, total in totals.items():
        counted = ", ".join(f"{value:,} {key}" for key, value in sorted(total.counts.items()))
        print(f"{source}: {counted}", flush=True)
        mine = [receipt["examples"] for receipt in receipts if receipt["source"] == source]
        for reason, count in sorted(total.bad.items()):
            first = next(examples[reason] for examples in mine if reason in examples)
            print(f"{source}: left out {count:,}: {reason} (such as {first})", flush=True)


class Bad:
    """Counts the rows that a shard leaves out; under ``on_bad: fail`` the first one ends the run."""

    def __init__(self, on_bad: str) -> None:
        self._on_bad = on_bad
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        if self._on_bad == "fail":
            raise ConfigError(f"{name}: {reason} (on_bad: skip leaves such rows out and counts them)")
        self.counts[reason] += 1
        self.examples.setdefault(reason, name)


def finish(folder: Path, output: Path) -> None:
    """Give the finished folder its name: the output is whole or absent."""
    import shutil

    require(not output.exists() or not any(output.iterdir()), f"output {output} exists and is not empty")
    shutil.rmtree(folder / ".receipts")
    if output.is_dir():
        output.rmdir()
    folder.replace(output)


def partial(output: Path) -> Path:
    """Where the output grows until it is finished; a later attempt goes on from there."""
    folder = output.with_name(f"{output.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(STOPPED)


@contextmanager
def session() -> Iterator[None]:
    """Connect to the agent's Ray cluster, or start one on this machine's CPUs.

    Inside, SIGTERM and SIGINT raise Stopped.
    """
    here = str(Path(__file__).resolve().parents[2])
    for key, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",  # Ray runs the workers side by side; each keeps to one thread
    }.items():
        os.environ.setdefault(key, value)
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any]
    if address:
        options = {"address": address, "runtime_env": {"env_vars": {"PYTHONPATH": here}}}
    else:
        # The workers inherit it: those that Ray starts ahead can be used, which an environment rules out.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        options = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    signal.signal(signal.SIGTERM, _stop)  # again: Ray takes it for itself
    try:
        import ray.data

        require(
            len([node for node in ray.nodes() if node["Alive"]]) == 1,
            "data preparation writes to one node's disk: launch it with --nodes 1",
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        settings = ray.data.DataContext.get_current()
        settings.enable_progress_bars = False  # we draw our own
        settings.print_on_execution_start = False
        yield
    finally:
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """Bytes of input done, redrawn in a terminal, a new line now and then in a log."""

    def __init__(self, total: int) -> None:
        self._total, self._done = max(total, 1), 0
        self._started = time.monotonic()

    def add(self, amount: int) -> None:
        self._done += amount
        share, seconds = self._done / self._total, time.monotonic() - self._started
        bar = ("#" * round(24 * min(share, 1))).ljust(24, "-")
        rate = self._done / max(seconds, 1e-6) / 1e6
        end = "\r" if sys.stderr.isatty() and share < 1 else "\n"
        print(
            f"prepare [{bar}] {share:4.0%}  {self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB,"
            f" {rate:.2f} MB/s",
            end=end,
            file=sys.stderr,
            flush=True,
        )
