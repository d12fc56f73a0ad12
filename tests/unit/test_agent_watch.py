"""What the agent takes from a trainer while it runs: checkpoints in the background, and metrics."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.agent import watch
from launcher.agent.job import Node
from launcher.agent.metrics import MetricsFile
from launcher.agent.rendezvous import Attempt
from launcher.artifacts import checkpoints
from launcher.artifacts.store import FileStore
from tests.rig import Rig

# Checkpoints in the background


def test_the_trainer_may_remove_what_is_being_uploaded(rig: Rig) -> None:
    """It keeps one; every checkpoint that is committed is whole all the same."""
    rig.job["checkpoints"] = {"keep": 100}
    rig.run("40", "save=2", "sleep=0.05", "keep=1", "size=3000000")
    done = checkpoints.committed(rig.store, rig.run_id)
    assert done[0].step == 40
    assert all([file.path for file in item.files] == ["shard-0.bin", "state-0.json"] for item in done)


def test_those_in_between_are_skipped_and_the_newest_is_committed(rig: Rig) -> None:
    rig.job["checkpoints"] = {"keep": 1000}
    rig.run("200", "save=1", "size=200000")
    steps = [item.step for item in checkpoints.committed(rig.store, rig.run_id)]
    assert steps[0] == 200
    assert len(steps) < 100


def test_a_checkpoint_is_held_while_its_trainer_removes_it(tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000001"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("a")
    held = watch.hold(folder)
    assert [path.name for path in tmp_path.rglob("iter_*")] == [folder.name], "Bridge removes any other"
    subprocess.run(["rm", "-r", folder], check=True)
    assert watch.names_in(held) == {"deep/a"}
    assert watch.names_in(watch.hold(folder)) == set()


def test_what_the_trainer_may_be_removing_is_not_committed(tmp_path: Path) -> None:
    """It never removes what its tracker file names; another node goes by what stands still."""
    folders = [tmp_path / "checkpoints" / f"iter_{step:07d}" for step in (10, 20)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "a").touch()
        (folder / "b").touch()
    tracker = tmp_path / "checkpoints" / checkpoints.TRACKER
    attempt = Attempt(FileStore(tmp_path / "store"), "r", 1)

    def whole(rank: int, during: Callable[[], object]) -> bool:
        node = Node(rank, 2, (), tmp_path, tmp_path / "config.yaml", {})
        watcher = watch.Watch(attempt, node, keep=None, restored=99, committed=lambda *_: None)
        held = watch.hold(folders[0])
        during()
        return watcher._is_whole(10, held)

    tracker.write_text("10")
    assert whole(0, lambda: None)
    assert not whole(0, lambda: tracker.write_text("20"))
    assert whole(1, lambda: None)
    assert not whole(1, lambda: (folders[0] / "a").unlink())
    subprocess.run(["rm", "-r", folders[1]], check=True)
    assert whole(1, lambda: None), "nothing newer: nothing is removed"


# Metrics


def test_only_numbers_are_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.jsonl"
    file = MetricsFile(path)
    assert file.points() == []
    path.write_text('{"step": 1, "ts": 2000, "a": 1, "b": "x", "c": true, "d": null}\nnot json\n[1]\n{"a": 2')
    first = file.points()
    assert first == [{"key": "a", "value": 1, "step": 1, "ts": 2.0}]
    with path.open("a") as more:
        more.write('}\n\n{"step": 3, "b": "y", "a": NaN}\n{"step": "x", "a": 1}\n{"step": 5, "z": 1}')
    second = file.points()
    assert [(p["key"], p["step"]) for p in second] == [("a", 1), ("a", 3)]
    assert abs(second[0]["ts"] - time.time()) < 60
    assert [p["key"] for p in file.points(final=True)] == ["z"]
    said = capsys.readouterr().err
    assert said.count("b is not a number") == 1
    assert said.count("no JSON object") == 1


@settings(max_examples=40)
@given(st.lists(st.integers(0, 200)), st.integers(1, 50))
def test_however_the_file_grows_no_point_is_lost(cuts: list[int], count: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        text = "".join(json.dumps({"step": i, "loss": i / 2}) + "\n" for i in range(count)).encode()
        file, seen = MetricsFile(path), []
        for at in [*sorted(min(cut, len(text)) for cut in cuts), len(text)]:
            path.write_bytes(text[:at])
            seen += file.points()
        assert [point["step"] for point in seen] == list(range(count))
