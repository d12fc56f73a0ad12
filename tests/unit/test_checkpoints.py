"""Checkpoints: committed by all nodes or not at all, restored exactly, pruned safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.artifacts import checkpoints, registry
from launcher.artifacts.checkpoints import Checkpoint
from launcher.artifacts.store import FileStore, Store, StoreError
from launcher.artifacts.uri import ArtifactRef


def saved(tmp_path: Path, step: int, node: int = 0, **files: str) -> Path:
    """The folder that a trainer on a node saved."""
    folder = tmp_path / f"node-{node}" / f"iter_{step:07d}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {f"__{node}_0.distcp": f"{step} of node {node}", **files}.items():
        (folder / name).write_text(text)
    return folder


def commit(store: Store, tmp_path: Path, step: int, **options: Any) -> Checkpoint:
    checkpoints.commit_part(store, "run", step, saved(tmp_path, step), node=0, **options)
    checkpoint = checkpoints.finish_commit(store, "run", step, 1, {"loss": 1.5}, **options)
    assert checkpoint
    return checkpoint


def test_two_nodes_make_one_checkpoint(store: Store, tmp_path: Path) -> None:
    checkpoints.commit_part(store, "run", 100, saved(tmp_path, 100, 0, common="same"), node=0)
    assert checkpoints.finish_commit(store, "run", 100, 2, {}) is None
    assert checkpoints.newest(store, "run") is None
    checkpoints.commit_part(store, "run", 100, saved(tmp_path, 100, 1, common="same"), node=1)
    made = checkpoints.finish_commit(store, "run", 100, 2, {"loss": 2.5})
    assert made
    assert [entry.path for entry in made.files] == ["__0_0.distcp", "__1_0.distcp", "common"]
    assert made.metadata == {"loss": 2.5}
    assert checkpoints.newest(store, "run") == made
    assert checkpoints.finish_commit(store, "run", 100, 2, {}) == made
    folder = checkpoints.restore(store, made, tmp_path / "restored")
    assert sorted(path.name for path in folder.iterdir()) == ["__0_0.distcp", "__1_0.distcp", "common"]
    assert (tmp_path / "restored" / "latest_checkpointed_iteration.txt").read_text() == "100"


@pytest.mark.parametrize("made", [False, True], ids=["no folder", "an empty folder"])
def test_a_node_that_saved_nothing_takes_part(store: Store, tmp_path: Path, made: bool) -> None:
    nothing = tmp_path / "node-1" / "iter_0000100"
    if made:
        nothing.mkdir(parents=True)
    checkpoints.commit_part(store, "run", 100, saved(tmp_path, 100), node=0)
    checkpoints.commit_part(store, "run", 100, nothing, node=1)
    found = checkpoints.finish_commit(store, "run", 100, 2, {})
    assert found
    assert [entry.path for entry in found.files] == ["__0_0.distcp"]


def test_two_nodes_that_disagree_are_refused(store: Store, tmp_path: Path) -> None:
    for node in (0, 1):
        checkpoints.commit_part(store, "run", 1, saved(tmp_path, 1, node, common=f"of {node}"), node=node)
    with pytest.raises(StoreError, match="iter_0000001/common: two nodes saved different content"):
        checkpoints.finish_commit(store, "run", 1, 2, {})


def test_parts_of_two_attempts_are_not_mixed(store: Store, tmp_path: Path) -> None:
    checkpoints.commit_part(store, "run", 1, saved(tmp_path, 1, 1), node=1, attempt=1)
    checkpoints.commit_part(store, "run", 1, saved(tmp_path, 1, 0), node=0, attempt=2)
    assert checkpoints.finish_commit(store, "run", 1, 2, {}, attempt=2) is None
    (tmp_path / "node-1" / "iter_0000001" / "__1_0.distcp").write_text("of attempt 2")
    checkpoints.commit_part(store, "run", 1, tmp_path / "node-1" / "iter_0000001", node=1, attempt=2)
    made = checkpoints.finish_commit(store, "run", 1, 2, {}, attempt=2)
    assert made
    folder = checkpoints.restore(store, made, tmp_path / "restored")
    assert (folder / "__1_0.distcp").read_text() == "of attempt 2"


def test_a_committed_step_is_not_written_again(store: Store, tmp_path: Path) -> None:
    made = commit(store, tmp_path, 3)
    (tmp_path / "node-0" / "iter_0000003" / "__0_0.distcp").write_text("another")
    checkpoints.commit_part(store, "run", 3, tmp_path / "node-0" / "iter_0000003", node=0, attempt=2)
    assert checkpoints.finish_commit(store, "run", 3, 1, {}, attempt=2) == made
    checkpoints.restore(store, made, tmp_path / "restored")


def test_newest_is_by_number_and_committed(store: Store, tmp_path: Path) -> None:
    assert checkpoints.newest(store, "run") is None
    for step in (9_999_999, 10_000_000, 5):
        commit(store, tmp_path, step)
    checkpoints.commit_part(store, "run", 10_000_001, saved(tmp_path, 10_000_001), node=0)
    newest = checkpoints.newest(store, "run")
    assert newest
    assert newest.step == 10_000_000
    assert [item.step for item in checkpoints.committed(store, "run")] == [10_000_000, 9_999_999, 5]


def test_restore_leaves_exactly_the_committed_set(store: Store, tmp_path: Path) -> None:
    made = commit(store, tmp_path, 2)
    place = tmp_path / "checkpoints"
    for name in ("iter_0000001", "iter_0000002", "iter_0000003", "tensorboard"):
        (place / name).mkdir(parents=True)
        (place / name / "stale").touch()
    (place / checkpoints.TRACKER).write_text("3")
    checkpoints.restore(store, made, place)
    found = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    assert found == ["iter_0000002/__0_0.distcp", checkpoints.TRACKER, "tensorboard/stale"]
    assert (place / checkpoints.TRACKER).read_text() == "2"
    inode = (place / "iter_0000002" / "__0_0.distcp").stat().st_ino
    checkpoints.restore(store, made, place)
    assert (place / "iter_0000002" / "__0_0.distcp").stat().st_ino == inode, "a right copy is kept"


@pytest.mark.parametrize("content", [b"2 of node 1", b"2"])
def test_a_damaged_checkpoint_is_not_announced(store: Store, tmp_path: Path, content: bytes) -> None:
    made = commit(store, tmp_path, 2)
    key = f"{made.base}/__0_0.distcp"
    store.put_bytes(key, content)
    place = tmp_path / "checkpoints"
    place.mkdir()
    (place / checkpoints.TRACKER).write_text("2")
    with pytest.raises(StoreError) as caught:
        checkpoints.restore(store, made, place)
    assert store.uri(key) in caught.value.message
    assert not (place / checkpoints.TRACKER).exists()


def test_prune_keeps_the_newest_and_what_artifacts_are_made_of(store: Store, tmp_path: Path) -> None:
    made = {step: commit(store, tmp_path, step) for step in (10, 20, 30, 40)}
    registry.publish(
        store,
        name="model",
        type="model",
        metadata={"step": 20},
        inputs={},
        producer={},
        checkpoint=made[20],
    )
    for step in (15, 50):
        checkpoints.commit_part(store, "run", step, saved(tmp_path, step), node=0)
    assert checkpoints.prune(store, "run", keep=2) == [15, 10]
    assert [item.step for item in checkpoints.committed(store, "run")] == [40, 30, 20]
    assert checkpoints.prune(store, "run", keep=0) == [30]
    assert [item.step for item in checkpoints.committed(store, "run")] == [40, 20]
    still_uploading = store.children("checkpoints/run")[-1]
    assert still_uploading == "iter_0000050/", "what is newer than the newest commit may yet be committed"
    registry.fetch(store, registry.resolve(store, ArtifactRef("model")), tmp_path / "model")
    assert checkpoints.prune(store, "another run", keep=1) == []


def test_half_a_deletion_does_not_come_back(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    made = commit(store, tmp_path, 1)
    commit(store, tmp_path, 2)
    store.delete_prefix(f"{made.base}/.nemo-sky/manifest.json")
    assert [item.step for item in checkpoints.committed(store, "run")] == [2]
    assert checkpoints.prune(store, "run", keep=5) == [1]
    assert store.list(made.base) == []
