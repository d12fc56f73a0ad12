"""The record of each launch: one folder per run under ``.nemo-sky/runs``.

RUN_ID/run.json      what was asked (written once, by the launcher)
RUN_ID/state.json    what became of it (written by the backend)
RUN_ID/task.yaml     the task that was submitted
RUN_ID/job/          job.yaml and train.yaml, which travel to the node
RUN_ID/provenance.patch, logs/, work/
RUN_ID/untracked     until MLflow shows how it ended: why it does not yet
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from launcher.errors import UserError, did_you_mean

UNTRACKED = "untracked"


@dataclass(frozen=True)
class Run:
    """What was asked of one run. ``output`` is the artifact's name, None for a stage without one.

    ``fingerprint`` is empty for a stage of a pipeline until its inputs are made: its journal knows it then.
    ``recipe`` is all of it but the inputs. ``experiment`` is whose budget it shares, None for one of its own.
    """

    run_id: str
    family: str
    stage: str
    config: str
    fingerprint: str
    cluster: str
    backend: str
    nodes: int
    created_at: str
    command: str
    output: str | None
    artifacts: str
    tracking: str
    recipe: str = ""
    experiment: str | None = None


def new_id(family: str, stage: str, now: datetime | None = None) -> str:
    """Sortable by time, readable, and unique: ``tiny-pretrain-20261121-081502-3fa90c2e``."""
    moment = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    return f"{stem(family, stage)}{moment}-{secrets.token_hex(4)}"


def stem(family: str, stage: str) -> str:
    """What the ids of a stage's runs begin with; their time follows."""
    return f"{family}-{stage.replace('/', '-')}-"


def directory(runs: Path, run_id: str) -> Path:
    return runs / run_id


def write_text(path: Path, text: str | bytes) -> None:
    """Write whole or not at all: a temporary name, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save(runs: Path, run: Run) -> None:
    write_text(directory(runs, run.run_id) / "run.json", json.dumps(asdict(run), indent=2) + "\n")


def forget(runs: Path, run: Run) -> None:
    """Nothing came of a run that was saved just now."""
    folder = directory(runs, run.run_id)
    (folder / "run.json").unlink()
    folder.rmdir()


def every(runs: Path) -> list[Run]:
    """All runs, newest first. A folder without a whole run.json was never submitted and is left out."""
    found = []
    for path in sorted(runs.glob("*/run.json")):
        try:
            found.append(Run(**json.loads(path.read_text())))
        except (ValueError, TypeError):
            continue
    return sorted(found, key=lambda run: (run.created_at, run.run_id), reverse=True)


def load(runs: Path, run_id: str) -> Run:
    """The run with this id, or the one run whose id begins with it.

    Raises UserError naming the nearest id when there is none or more than one.
    """
    known = every(runs)
    matches = [run for run in known if run.run_id == run_id] or [
        run for run in known if run.run_id.startswith(run_id)
    ]
    if len(matches) == 1:
        return matches[0]
    ids = [run.run_id for run in known]
    if matches:
        names = ", ".join(run.run_id for run in matches[:5])
        raise UserError(f"{run_id!r} could be any of {len(matches)} runs: {names}")
    raise UserError(
        f"there is no run {run_id!r}{did_you_mean(run_id, ids)}",
        hint="`nemo-sky runs list` shows them" if ids else "nothing was launched in this project yet",
    )


@contextmanager
def exclusive(runs: Path) -> Iterator[None]:
    """One launcher at a time decides whether to begin, resume or skip a run."""
    import fcntl

    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
