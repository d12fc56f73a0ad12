"""What the attempt leaves behind: the journal on the node, its copy in the store, and MLflow when it answers.

The journal is the truth: every event is on disk before anything relies on it. The copy in the store is
written whole on every flush, and whoever can reach MLflow replays it there. MLflow's troubles are said
once and never end a run.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from launcher.agent.ends import END_RETRY_S, Once, insist, say
from launcher.agent.metrics import MetricsFile
from launcher.agent.system import SystemMetrics
from launcher.artifacts.store import Store, StoreError
from launcher.errors import UserError
from launcher.lineage import journal

FLUSH_S = 5.0
_LAST_MLFLOW_S = 60.0  # what MLflow may take at the end; the launcher replays what it missed
_MLFLOW_PAUSE_S = 30.0


class Record:
    """Writes the journal of one attempt and keeps its copies up to date, in two threads of its own."""

    def __init__(
        self,
        store: Store,
        run_id: str,
        attempt: int,
        *,
        path: Path,
        metrics: MetricsFile,
        system: SystemMetrics,
        tracking: str | None,
    ) -> None:
        path.unlink(missing_ok=True)  # of a run of the same id in another store
        self._journal = journal.Journal(path)
        self._store = store
        self._key = f"runs/{run_id}/journal/{attempt}.jsonl"
        self._metrics = metrics
        self._system = system
        self._sent = 0
        self._trouble = Once()
        self._collecting = threading.Lock()
        self._sending = threading.Lock()
        self._soon = threading.Event()
        self._closing = False
        self._begun = self._ended = False
        self._thread = threading.Thread(target=self._flush_often, name="journal", daemon=True)
        self._mirror = Mirror(store, run_id, path, tracking)
        self._system.start()
        self._thread.start()

    def event(self, type: str, **fields: Any) -> None:
        """Append one event; it reaches the store and MLflow at once, as far as they answer. The attempt's end
        is the last: a notice that comes with it changes nothing."""
        with self._collecting:
            if self._ended:
                return
            self._journal.append(type, **fields)
            self._begun, self._ended = True, type == "attempt_ended"
        self._soon.set()

    def mlflow_run(self, wait_s: float) -> str | None:
        """MLflow's id of the run, None when it has not answered within ``wait_s``."""
        return self._mirror.run(wait_s)

    def collect(self, final: bool = False) -> None:
        """Journal the metrics that have come; ``final`` says that no more will. The journal's first event
        says whose they are: before it they wait, however long the attempt takes to begin."""
        with self._collecting:
            if not self._begun or self._ended:
                return
            for type, points in (("metrics", self._metrics.points(final)), ("system", self._system.take())):
                if points:
                    self._journal.append(type, points=points)

    def flush(self) -> None:
        """Write the journal to the store as it is, and have MLflow told. Raises StoreError."""
        self._mirror.wake()
        with self._sending:
            data = self._journal.path.read_bytes()
            if len(data) > self._sent:
                self._store.put_bytes(self._key, data)
                self._sent = len(data)

    def close(self) -> None:
        """The last flush: insists on the store, and gives MLflow a last chance."""
        self._closing = True
        self._soon.set()
        self._thread.join()
        self._system.stop()
        try:
            insist(self.flush, END_RETRY_S)
        except StoreError as error:
            say(f"the journal stays on the node only, in {self._journal.path}: {error.message}")
        self._mirror.close(_LAST_MLFLOW_S)
        self._journal.close()

    def _flush_often(self) -> None:
        while True:
            self._soon.wait(FLUSH_S)
            self._soon.clear()
            if self._closing:
                return
            try:
                self.collect()
                self.flush()
                self._trouble.over()
            except StoreError as error:
                self._trouble.trouble(f"the journal cannot be written to the store now: {error.message}")
            except OSError as error:
                self._trouble.trouble(f"the journal cannot be written now: {error}")


class Mirror:
    """Applies the journal to MLflow in a thread, so that a tracker that hangs holds nothing up."""

    def __init__(self, store: Store, run_id: str, path: Path, tracking: str | None) -> None:
        self._store = store
        self._run_id = run_id
        self._path = path
        self._tracking = tracking if tracking and _is_here(tracking) else None
        self._run: str | None = None
        self._answered = threading.Event()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._apply_often, name="mlflow", daemon=True)
        if self._tracking:
            self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def run(self, wait_s: float) -> str | None:
        """MLflow's id of the run, None while it has none; its first answer is waited for."""
        if self._tracking:
            self._answered.wait(wait_s)
        return self._run

    def close(self, wait_s: float) -> None:
        """Apply what is left, as far as it takes no longer than ``wait_s``."""
        self._closing.set()
        self._wake.set()
        if self._tracking:
            self._thread.join(wait_s)
            if self._thread.is_alive():
                say("MLflow is behind; `nemo-sky runs show` brings it up to date from the store")

    def _apply_often(self) -> None:
        from launcher.lineage import mlflow_view

        trouble = Once()
        applied = 0
        closing = False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            events = journal.read(self._path)
            if not self._tracking or len(events) == applied:
                continue
            try:
                if self._run is None:
                    mlflow_view.check(self._tracking)  # quickly, and without importing MLflow
                self._run = mlflow_view.apply(
                    events, tracking=self._tracking, run_id=self._run_id, store=self._store
                )
                applied = len(events)
                trouble.over()
            except Exception as error:  # whatever a tracker can come up with: it must not end a run
                text = error.message if isinstance(error, UserError) else repr(error)
                trouble.trouble(f"the run goes on without MLflow, which gets it later: {text}")
                self._answered.set()
                self._closing.wait(_MLFLOW_PAUSE_S)
            self._answered.set()


def _is_here(tracking: str) -> bool:
    """A database file is the launcher's own: on a node of a cloud its folder does not exist."""
    path = tracking.removeprefix("sqlite:///")
    return path == tracking or Path(path).parent.is_dir()
