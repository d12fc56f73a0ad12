"""Commits the checkpoints that the trainer saves, in the background, while it trains on.

A checkpoint is complete when the tracker file names it (Megatron's own convention). While one uploads, the
trainer may save more: those in between are skipped, the newest is always committed in the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launcher.agent.ends import NO_STORE, Ended, Once, backoff, insist, say
from launcher.agent.job import Node
from launcher.agent.rendezvous import Attempt
from launcher.artifacts import checkpoints
from launcher.artifacts.checkpoints import TRACKER, Checkpoint
from launcher.artifacts.store import StoreError
from launcher.errors import UserError

POLL_S = 0.3
# The nodes upload at the same time, so the others' parts come soon after our own, or never.
_PARTS_S = 60.0
_PARTS_FACTOR = 3.0  # of what our own took
_STILL_S = 1.0
_NICE = 10
_HELD = ".uploading"  # in the checkpoints folder, so that it is of the same file system


class Watch:
    """One node's part in committing checkpoints. ``committed`` is told of each, with the seconds it took.

    Node 0 reads the tracker file, tells the others which step it is, and commits when all parts are there.
    ``restored`` is the step that is in the store already.
    """

    def __init__(
        self,
        attempt: Attempt,
        node: Node,
        *,
        keep: int | None,
        restored: int | None,
        committed: Callable[[Checkpoint, float], None],
    ) -> None:
        self._attempt = attempt
        self._node = node
        self._keep = keep
        self._committed = committed
        self._done = -1 if restored is None else restored
        self._trouble = Once()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="checkpoints", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> int | None:
        """The trainer has ended: commit the newest that it saved, and return its step.

        Raises StoreError when that fails for ``seconds``.
        """
        self._stopping.set()
        self._thread.join()
        insist(self._look, seconds)
        return self._newest()

    def finish_as_member(self, timeout_s: float, overdue: Callable[[], bool]) -> int | None:
        """The trainer here has ended: upload what node 0 still asks for, until it says that it is done.

        Returns the code that node 0's command ended with, None when it does not say within ``timeout_s`` or
        before this node is ``overdue`` itself.
        """
        self._stopping.set()
        self._thread.join()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                code = self._attempt.ended()
                self._look()
            except StoreError as error:
                self._trouble.trouble(f"the store failed, trying again: {error.message}")
                code = None
            if code is not None or time.monotonic() > deadline or overdue():
                return code
            time.sleep(POLL_S)

    def finish_as_failed_member(self) -> None:
        """The trainer here has failed: upload what node 0 asks for already, and wait for nothing more."""
        self._stopping.set()
        self._thread.join()
        with contextlib.suppress(StoreError):
            self._look()

    def _watch(self) -> None:
        # Reading and hashing yields to the trainer. On Linux a thread has a priority of its own.
        # SkyPilot starts jobs through Ray, at 15: only root could be less nice again.
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, max(_NICE, os.getpriority(os.PRIO_PROCESS, me)))
        pauses = backoff()
        pause = POLL_S
        while not self._stopping.wait(pause):
            try:
                self._look()
                self._trouble.over()
                pauses, pause = backoff(), POLL_S
            except StoreError as error:
                self._trouble.trouble(f"a checkpoint cannot be committed now, trying again: {error.message}")
                pause = next(pauses)

    def _look(self) -> None:
        """Commit the newest complete checkpoint, unless it is. Raises StoreError."""
        step = self._newest()
        if step is None or step <= self._done:
            return
        try:
            if self._commit(step):
                self._done = step
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"checkpoint {step}: {error}") from error
        except UserError as error:
            say(f"checkpoint {step} is left out: {error.message}")
            self._done = step

    def _newest(self) -> int | None:
        if self._node.rank > 0:
            return self._attempt.announced()
        try:
            text = (self._node.checkpoints / TRACKER).read_text().strip()
        except FileNotFoundError:
            return None
        return int(text) if text.isdecimal() else None

    def _commit(self, step: int) -> bool:
        """Whether this node is done with the step."""
        began = time.monotonic()
        held = hold(self._node.checkpoints / checkpoints.folder_name(step))
        try:
            if not self._is_whole(step, held):
                return False
            if self._node.count > 1 and self._node.rank == 0:
                self._attempt.announce(step)
            attempt = self._attempt
            checkpoints.commit_part(
                attempt.store, attempt.run_id, step, held, self._node.rank, attempt.number
            )
        finally:
            shutil.rmtree(held, ignore_errors=True)
        if self._node.rank == 0:
            checkpoint = self._all_parts(step, time.monotonic() - began)
            self._committed(checkpoint, time.monotonic() - began)
            self._prune()
        return True

    def _is_whole(self, step: int, held: Path) -> bool:
        """Whether ``held`` has every file of the step, and the trainer had not begun to remove it.

        A trainer never removes what the tracker file names, so node 0 asks that. Another node has no such
        file: while nothing newer is there nothing is removed; otherwise the folder must stand still.
        """
        if self._node.rank == 0:
            named = self._newest() == step
            if named and not names_in(held):
                raise UserError(f"{TRACKER} names it, but there is no such folder")
            return named
        if not self._has_newer(step):
            return True
        time.sleep(_STILL_S)
        return names_in(held) == names_in(self._node.checkpoints / checkpoints.folder_name(step)) != set()

    def _all_parts(self, step: int, own_seconds: float) -> Checkpoint:
        """The checkpoint, committed. Raises StoreError when another node's part does not come."""
        deadline = time.monotonic() + _PARTS_S + _PARTS_FACTOR * own_seconds
        attempt, nodes = self._attempt, self._node.count
        facts = {"attempt": attempt.number, "nodes": nodes}
        while True:
            checkpoint = checkpoints.finish_commit(
                attempt.store, attempt.run_id, step, nodes, facts, attempt.number
            )
            if checkpoint:
                return checkpoint
            if time.monotonic() > deadline:
                raise StoreError(f"checkpoint {step}: not every node has uploaded its part")
            time.sleep(POLL_S)

    def _prune(self) -> None:
        if self._keep:
            try:
                checkpoints.prune(self._attempt.store, self._attempt.run_id, self._keep)
            except StoreError as error:
                self._trouble.trouble(f"old checkpoints stay for now: {error.message}")

    def _has_newer(self, step: int) -> bool:
        names = (path.name.removeprefix("iter_") for path in self._node.checkpoints.glob("iter_*"))
        return any(int(name) > step for name in names if name.isdecimal())


def hold(folder: Path) -> Path:
    """A second name for every file of a checkpoint, so that its upload survives the trainer's own retention.

    Copies where the file system has no hard links. What is removed meanwhile is missing in it. Its name is no
    checkpoint's: Megatron-Bridge removes what is called ``iter_*`` anywhere below the folder.
    """
    held = folder.parent / _HELD / f"held_{folder.name}"
    shutil.rmtree(held, ignore_errors=True)
    for place, _, names in os.walk(folder):
        target = held / Path(place).relative_to(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                _link(Path(place) / name, target / name)
    return held


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def names_in(folder: Path) -> set[str]:
    """The files below a folder; none when it is absent."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def restore(attempt: Attempt, node: Node, step: int | None) -> Checkpoint | None:
    """Make the checkpoints folder hold exactly the committed checkpoint ``step``, or nothing.

    What a killed attempt saved and did not commit is not used: other nodes may not have it. Raises
    StoreError when it cannot be read, Ended when it is gone.
    """
    shutil.rmtree(node.checkpoints / _HELD, ignore_errors=True)
    if step is None:
        shutil.rmtree(node.checkpoints, ignore_errors=True)
        node.checkpoints.mkdir(parents=True)
        return None
    for checkpoint in checkpoints.committed(attempt.store, attempt.run_id):
        if checkpoint.step == step:
            checkpoints.restore(attempt.store, checkpoint, node.checkpoints)
            return checkpoint
    raise Ended(NO_STORE, f"checkpoint {step} is gone from the store")
