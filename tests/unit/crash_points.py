"""A program that kills itself with SIGKILL at every point of an operation on a store, one after the other.

    python -m tests.unit.crash_points SCENARIO STORE_URL ENDPOINT|- FOLDER

The N-th child dies before its N-th effect (``tests.moments``); then a fresh child asserts what must be true,
tries again and asserts that it worked. It ends, and prints N, when a child came through. ``race`` instead
lets 20 publishers in 5 processes go at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.artifacts import checkpoints, registry
from launcher.artifacts.store import Store, open_store
from launcher.artifacts.uri import ArtifactRef
from tests.moments import die_before_effect, ended, in_child, start_child

CONTENT = {"a.bin": b"a" * 1000, "sub/b.bin": b"b" * 2000, "sub/c.bin": b""}


def sources(folder: Path) -> Path:
    source = folder / "source"
    for name, content in CONTENT.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    return source


def assert_is_content(folder: Path) -> None:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert found == CONTENT, found


def publish(store: Store, folder: Path) -> None:
    registry.publish(
        store,
        name="thing",
        type="eval-report",
        metadata={"scores": {}},
        inputs={},
        producer={"run_id": "r", "attempt": 1},
        directory=folder / "source",
    )


def publish_is_whole_or_invisible(store: Store, folder: Path, retried: bool) -> None:
    known = registry.versions(store, "thing")
    assert known == [1] if retried else known in ([], [1]), known
    assert registry.names(store) == (["thing"] if known else [])
    for version in known:
        registry.fetch(store, registry.resolve(store, ArtifactRef("thing", version)), folder / "fetched")
        assert_is_content(folder / "fetched")
        shutil.rmtree(folder / "fetched")


def commit(store: Store, folder: Path) -> None:
    checkpoints.commit_part(store, "r", 7, folder / "source", node=0)
    assert checkpoints.finish_commit(store, "r", 7, 1, {})


def commit_is_whole_or_invisible(store: Store, folder: Path, retried: bool) -> None:
    newest = checkpoints.newest(store, "r")
    assert newest or not retried
    if newest:
        assert newest.step == 7
        assert_is_content(checkpoints.restore(store, newest, folder / "restored"))
        shutil.rmtree(folder / "restored")


def restore(store: Store, folder: Path) -> None:
    checkpoint = checkpoints.newest(store, "r")
    assert checkpoint
    checkpoints.restore(store, checkpoint, folder / "checkpoints")


def restore_is_whole_or_unannounced(store: Store, folder: Path, retried: bool) -> None:
    tracker = folder / "checkpoints" / checkpoints.TRACKER
    assert tracker.exists() or not retried
    if tracker.exists():
        assert tracker.read_text() == "7"
        assert_is_content(folder / "checkpoints" / "iter_0000007")


def commit_two(store: Store, folder: Path) -> None:
    for step in (7, 8):
        checkpoints.commit_part(store, "r", step, folder / "source", node=0)
        checkpoints.finish_commit(store, "r", step, 1, {})


def prune(store: Store, folder: Path) -> None:
    checkpoints.prune(store, "r", keep=1)


def pruned_ones_are_whole_or_invisible(store: Store, folder: Path, retried: bool) -> None:
    committed = checkpoints.committed(store, "r")
    assert [checkpoint.step for checkpoint in committed] in ([[8]] if retried else [[8, 7], [8]])
    for checkpoint in committed:
        assert_is_content(checkpoints.restore(store, checkpoint, folder / "restored"))
    if retried:
        assert store.children("checkpoints/r") == ["iter_0000008/"]


def nothing(store: Store, folder: Path) -> None:
    """What needs no preparation."""


# What is done first in peace, what is killed, what must be true before and after it is done again.
SCENARIOS = {
    "publish": (nothing, publish, publish_is_whole_or_invisible),
    "commit": (nothing, commit, commit_is_whole_or_invisible),
    "restore": (commit, restore, restore_is_whole_or_unannounced),
    "prune": (commit_two, prune, pruned_ones_are_whole_or_invisible),
}


def crash_everywhere(scenario: str, url: str, endpoint: str | None, folder: Path) -> int:
    """The number of points at which the operation was killed."""
    prepare, operate, check = SCENARIOS[scenario]
    open_store(url, endpoint).children("")  # what is imported and read now, every child inherits
    for number in range(1000):
        place = folder / str(number)
        sources(place)

        def attempt(number: int = number, place: Path = place) -> None:
            store = open_store(f"{url}/{number}", endpoint)
            prepare(store, place)
            die_before_effect(number)
            operate(store, place)

        def check_and_retry(number: int = number, place: Path = place) -> None:
            store = open_store(f"{url}/{number}", endpoint)
            check(store, place, False)
            operate(store, place)
            check(store, place, True)

        status = in_child(attempt)
        assert status in (0, -signal.SIGKILL), f"point {number}: exit {status}"
        assert in_child(check_and_retry) == 0, f"after a kill at point {number}"
        if status == 0:
            return number
    raise AssertionError("it never came through")


def race(url: str, endpoint: str | None, folder: Path) -> int:
    """20 publishers at once, 4 threads in each of 5 processes; the number of versions they made."""
    source = sources(folder)
    open_store(url, endpoint).children("")

    def publish_four() -> None:
        store = open_store(url, endpoint)
        barrier = threading.Barrier(4)

        def one(thread: int) -> None:
            barrier.wait()
            registry.publish(
                store,
                name="thing",
                type="eval-report",
                metadata={"scores": {"pid": os.getpid(), "thread": thread}},
                inputs={},
                producer={},
                directory=source,
            )

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(4)))

    children = [start_child(publish_four) for _ in range(5)]
    assert [ended(pid) for pid in children] == [0] * 5
    store = open_store(url, endpoint)
    versions = registry.versions(store, "thing")
    assert versions == list(range(1, 21)), versions
    makers = [str(registry.resolve(store, ArtifactRef("thing", v)).metadata["scores"]) for v in versions]
    assert len(set(makers)) == 20, "each publisher has a version of its own"
    return len(versions)


if __name__ == "__main__":
    what, where, at, workplace = sys.argv[1:]
    address = None if at == "-" else at
    if what == "race":
        print(race(where, address, Path(workplace)))
    else:
        print(crash_everywhere(what, where, address, Path(workplace)))
