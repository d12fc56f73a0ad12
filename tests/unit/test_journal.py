"""The journal: on disk before anything relies on it, and readable after any crash."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.agent.metrics import MetricsFile
from launcher.agent.record import Record
from launcher.agent.system import SystemMetrics
from launcher.artifacts.store import FileStore
from launcher.errors import UserError
from launcher.lineage import journal
from launcher.lineage.journal import Journal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.sampled_from(["points", "step", "uri", "manifest"]), VALUES)


@given(st.lists(FIELDS, max_size=8))
def test_events_read_back(tmp_path_factory: pytest.TempPathFactory, many: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "runs" / "1.jsonl"
    written = Journal(path)
    events = [written.append("metrics", **fields) for fields in many]
    written.close()
    assert journal.read(path) == events
    assert journal.read(path.read_bytes()) == events
    assert [event["seq"] for event in events] == list(range(1, len(many) + 1))


@given(st.lists(FIELDS, min_size=1, max_size=4), st.floats(0, 1))
def test_whatever_a_crash_leaves_is_read_and_continued(
    tmp_path_factory: pytest.TempPathFactory, many: list[dict[str, Any]], share: float
) -> None:
    path = tmp_path_factory.mktemp("journal") / "1.jsonl"
    written = Journal(path)
    events = [written.append("metrics", **fields) for fields in many]
    written.close()
    whole = path.read_bytes()
    torn = whole[: round(share * len(whole))]
    path.write_bytes(torn)
    left = events[: torn.count(b"\n")]
    assert journal.read(torn) == left
    again = Journal(path)
    last = again.append("restored", step=1)
    again.close()
    assert last["seq"] == len(left) + 1
    assert journal.read(path) == [*left, last]


def test_values_that_are_not_finite_survive(tmp_path: Path) -> None:
    written = Journal(tmp_path / "1.jsonl")
    written.append("metrics", points=[{"key": "loss", "value": v} for v in (math.nan, math.inf, -math.inf)])
    values = [point["value"] for point in journal.read(tmp_path / "1.jsonl")[0]["points"]]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]


def test_threads_write_whole_lines_in_order(tmp_path: Path) -> None:
    written = Journal(tmp_path / "1.jsonl")

    def write(thread: int) -> None:
        for number in range(20):
            written.append("metrics", points=[], thread=thread, number=number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = journal.read(tmp_path / "1.jsonl")
    assert [event["seq"] for event in events] == list(range(1, 81))


def test_a_killed_process_leaves_what_it_had_written(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; from launcher.lineage.journal import Journal;"
        "j = Journal(pathlib.Path(sys.argv[1]));"
        "[j.append('checkpoint', step=n) for n in range(5)]; os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "1.jsonl")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [event["step"] for event in journal.read(tmp_path / "1.jsonl")] == [0, 1, 2, 3, 4]


def test_an_absent_journal_is_empty(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "none") == []
    assert journal.read(b"") == []


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"seq": 3, "ts": 1, "type": "x"}', b'{"seq": 2, "type": "x"}', b"\xff", b""]
)
def test_a_damaged_line_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_bytes(b'{"seq":1,"ts":1,"type":"x"}\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        journal.read(path)
    assert caught.value.where == f"{path}:2"


def test_points_that_come_before_the_attempt_has_begun_wait_for_its_first_event(tmp_path: Path) -> None:
    """Whatever holds the beginning up, the ledger or an input: without its own event first no tracker takes
    the journal."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.path.write_text('{"step": 1, "loss": 2.0}\n')
    path = tmp_path / "journal.jsonl"
    store = FileStore(tmp_path / "store")
    record = Record(store, "r", 1, path=path, metrics=metrics, system=SystemMetrics(0.0), tracking=None)
    record.collect()
    record.event("attempt_started", run={})
    record.collect()
    record.close()
    assert [event["type"] for event in journal.read(path)][:2] == ["attempt_started", "metrics"]
