"""Checkpoints of a run, in the store: committed whole, restored exactly, pruned safely.

checkpoints/RUN_ID/iter_0000100/<files>                         uploaded by each node
checkpoints/RUN_ID/iter_0000100/.nemo-sky/parts/node-K.json     node K's files are all there
checkpoints/RUN_ID/iter_0000100/.nemo-sky/manifest.json         the commit point: every node's are
checkpoints/RUN_ID/iter_0000100/.nemo-sky/pinned.json           an artifact version is made of it
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.artifacts import transfer
from launcher.artifacts.keys import check_relative, fsync_folder
from launcher.artifacts.manifest import (
    FileEntry,
    damaged,
    digest_of,
    parse_json,
    read_entries,
    total_bytes,
)
from launcher.artifacts.store import Store, StoreError
from launcher.artifacts.transfer import RESERVED, Progress
from launcher.errors import Refused

# Megatron-Core reads the step to load from here (megatron/training/checkpointing.py).
TRACKER = "latest_checkpointed_iteration.txt"

_ROOT = "checkpoints"
_FOLDER = re.compile(r"iter_(\d{7,})/?")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: the folder ``base`` of the store, as all nodes together saved it."""

    run_id: str
    step: int
    base: str
    files: tuple[FileEntry, ...]
    created_at: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return total_bytes(self.files)

    @property
    def digest(self) -> str:
        return digest_of(self.files)


def folder_name(step: int) -> str:
    """Megatron's name of a checkpoint's folder."""
    return f"iter_{step:07d}"


def commit_part(
    store: Store,
    run_id: str,
    step: int,
    directory: Path,
    node: int,
    attempt: int = 1,
    progress: Progress | None = None,
) -> None:
    """Upload the files that node ``node`` saved in ``directory``, then say that they are there.

    A node that saved nothing, as its ranks hold copies of another's state, has no ``directory`` or one
    without a file. Does nothing when the step is committed, or this part is there from the same attempt. A
    part that an earlier attempt left is written anew: only parts of one attempt make a checkpoint.
    """
    base = _base(run_id, step)
    if store.get_bytes(_manifest_key(base)) is not None:
        return
    key = _part_key(base, node)
    known = store.get_bytes(key)
    if known is not None:
        if parse_json(known, store.uri(key)).get("attempt") == attempt:
            return
        store.delete_prefix(key)
    saved = any(path.is_file() for path in directory.rglob("*"))
    found = transfer.scan(directory) if saved else {}
    files = transfer.upload(store, base, found, progress)
    part = {"node": node, "attempt": attempt, "files": [asdict(entry) for entry in files]}
    store.put_bytes(key, json.dumps(part, indent=1).encode())


def finish_commit(
    store: Store,
    run_id: str,
    step: int,
    nodes: int,
    metadata: Mapping[str, Any],
    attempt: int = 1,
) -> Checkpoint | None:
    """Commit the step when the parts of all ``nodes`` of this attempt are there; None until then.

    Returns the checkpoint also when it was committed before. Raises StoreError when two nodes saved
    different content under one name, which no reader could tell apart.
    """
    base = _base(run_id, step)
    if done := _read(store, base):
        return done
    files: dict[str, FileEntry] = {}
    for node in range(nodes):
        key = _part_key(base, node)
        data = store.get_bytes(key)
        if data is None:
            return None
        part = parse_json(data, store.uri(key))
        if part.get("attempt") != attempt:
            return None
        for entry in _entries(part, store.uri(key)):
            if files.setdefault(entry.path, entry) != entry:
                raise StoreError(
                    f"{store.uri(base)}/{entry.path}: two nodes saved different content under it"
                )
    checkpoint = Checkpoint(
        run_id=run_id,
        step=step,
        base=base,
        files=tuple(files[path] for path in sorted(files)),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metadata=dict(metadata),
    )
    text = json.dumps(asdict(checkpoint) | {"nodes": nodes, "attempt": attempt}, indent=1)
    store.put_bytes(_manifest_key(base), text.encode(), if_absent=True)
    return _read(store, base)


def committed(store: Store, run_id: str) -> list[Checkpoint]:
    """All committed checkpoints of a run, newest first."""
    found = (_read(store, _base(run_id, step)) for step in _steps(store, run_id))
    return [checkpoint for checkpoint in found if checkpoint]


def newest(store: Store, run_id: str) -> Checkpoint | None:
    """The committed checkpoint with the highest step, None when there is none."""
    for step in _steps(store, run_id):
        if checkpoint := _read(store, _base(run_id, step)):
            return checkpoint
    return None


def restore(
    store: Store, checkpoint: Checkpoint, checkpoints_dir: Path, progress: Progress | None = None
) -> Path:
    """Make ``checkpoints_dir`` hold this checkpoint and no other, every file verified; returns its folder.

    Megatron's tracker file is removed first and written last, so that a crash in between leaves nothing
    that a trainer would load. A local copy that is already right is kept. Raises StoreError naming the
    file that is missing or damaged.
    """
    tracker = checkpoints_dir / TRACKER
    folder = checkpoints_dir / folder_name(checkpoint.step)
    try:
        checkpoints_dir.mkdir(parents=True, exist_ok=True)
        tracker.unlink(missing_ok=True)
        for other in checkpoints_dir.iterdir():
            if _FOLDER.fullmatch(other.name) and other != folder:
                transfer.remove(other)
        if not transfer.holds_exactly(folder, checkpoint.files):
            transfer.download(store, checkpoint.base, checkpoint.files, folder, progress)
        temporary = checkpoints_dir / f".{TRACKER}.tmp"
        with temporary.open("w") as file:
            file.write(str(checkpoint.step))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(tracker)
        fsync_folder(checkpoints_dir)
    except OSError as error:
        raise Refused(f"cannot restore into {checkpoints_dir}: {error.strerror or error}") from error
    return folder


def prune(store: Store, run_id: str, keep: int) -> list[int]:
    """Delete all but the ``keep`` newest committed checkpoints; returns the steps that went.

    The newest always stays, and so does whatever an artifact version is made of. What is left of uploads
    below the newest step that never finished goes too: nothing will finish them.
    """
    existing = committed(store, run_id)
    if not existing:
        return []
    kept = {checkpoint.step for checkpoint in existing[: max(keep, 1)]}
    gone = []
    for step in _steps(store, run_id):
        base = _base(run_id, step)
        if step in kept or step > existing[0].step or store.size(_pin_key(base)) is not None:
            continue
        # The manifest goes first and the parts second: half a deletion is invisible and cannot come back.
        store.delete_prefix(_manifest_key(base))
        store.delete_prefix(f"{base}/{RESERVED}")
        store.delete_prefix(base)
        gone.append(step)
    return gone


def pin(store: Store, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint from being pruned, because an artifact version is about to name its files."""
    store.put_bytes(_pin_key(checkpoint.base), b"{}\n")


def _steps(store: Store, run_id: str) -> list[int]:
    """The steps that have anything in the store, highest first."""
    matches = map(_FOLDER.fullmatch, store.children(f"{_ROOT}/{check_relative(run_id)}"))
    return sorted((int(match.group(1)) for match in matches if match), reverse=True)


def _read(store: Store, base: str) -> Checkpoint | None:
    key = _manifest_key(base)
    data = store.get_bytes(key)
    if data is None:
        return None
    source = store.uri(key)
    values = parse_json(data, source)
    try:
        return Checkpoint(
            run_id=str(values["run_id"]),
            step=int(values["step"]),
            base=base,
            files=_entries(values, source),
            created_at=str(values["created_at"]),
            metadata=dict(values["metadata"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(source, error) from error


def _entries(values: Mapping[str, Any], source: str) -> tuple[FileEntry, ...]:
    try:
        return read_entries(values["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(source, error) from error


def _base(run_id: str, step: int) -> str:
    return f"{_ROOT}/{check_relative(run_id)}/{folder_name(step)}"


def _manifest_key(base: str) -> str:
    return f"{base}/{RESERVED}/manifest.json"


def _part_key(base: str, node: int) -> str:
    return f"{base}/{RESERVED}/parts/node-{node}.json"


def _pin_key(base: str) -> str:
    return f"{base}/{RESERVED}/pinned.json"
