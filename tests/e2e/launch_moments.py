"""A program that kills a launch with SIGKILL before every one of its own effects, one after the other.

    python -m tests.e2e.launch_moments MLFLOW_DATABASE FOLDER [MOMENT ...]

The launcher of moment N, forked from one that has imported everything, dies before its N-th effect
(``tests.moments``) in a project of its own; that of N+0.1 a tenth of a second later, while it waits for the
supervisor or follows the run. Then the same command is typed again until it ends well, and what was promised
is looked at. Prints how many moments there were, and each that broke the promise; with MOMENTs, of these.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from launcher import history, project, runs
from launcher.artifacts import registry
from launcher.artifacts.store import open_store
from launcher.cli.main import main as nemo_sky
from launcher.money import receipts
from launcher.money.account import MICROS
from launcher.money.ledger import now_ms, open_ledger
from tests.e2e.conftest import Project, commit_all
from tests.e2e.crash import processes_of
from tests.mlflow_runs import in_mlflow
from tests.moments import before_effects, die_before_effect, ended, in_child, start_child

# Its own tracker is out of the node's reach, as on a cloud: what MLflow shows is the launcher's to see to.
CONFIG = "output: ${node:output}\nrun: {env: {MLFLOW_TRACKING_URI: 'sqlite:////nowhere/ml.db'}}\n"
STAGE = """# /// script
# [tool.runspec]
# name = "demo/prep"
# [tool.runspec.run]
# launch = "direct"
# [tool.runspec.resources]
# gpus_per_node = 0
# [tool.nemo_sky.output]
# name = "demo-data"
# type = "eval-report"
# ///
import os, pathlib
out = pathlib.Path(os.environ["NEMO_SKY_OUTPUT"])
out.mkdir()
(out / "score.txt").write_text("1")
pathlib.Path(os.environ["NEMO_SKY_METADATA"]).write_text('{"scores": {}}')
"""
# The first lease is 60 s of set-up, 60 s to the first check, 180 s to save: $0.0834. Two do not fit.
BUDGET = 0.15
LAUNCH = [*("launch", "demo", "prep", "--cloud", "fake", "--managed")]
LAUNCH += ["--experiment", "e", "--experiment-budget", str(BUDGET)]
# Of the run's second or two, in seconds after its supervisor was begun.
DELAYS = (0, 0.02, 0.1, 0.3, 0.7, 1.4)
LANES = 2
PATIENCE_S = 120.0


def make(place: Path, database: Path) -> None:
    """A project with one stage that takes a fraction of a second, on the fake cloud."""
    stage = place / "recipes" / "demo" / "prep"
    (stage / "config").mkdir(parents=True)
    (stage / "script.py").write_text(STAGE)
    (stage / "config" / "default.yaml").write_text(CONFIG)
    (place / "clusters").mkdir()
    (place / "clusters" / "fake.yaml").write_text(
        "backend: fake\npython: current\ncontainers: false\nprice_per_hour: 1\n"
    )
    (place / "nemo-sky.yaml").write_text("artifacts: .nemo-sky/store\n")
    (place / ".nemo-sky").mkdir()
    shutil.copy(database, place / ".nemo-sky" / "mlflow.db")
    (place / ".gitignore").write_text(".nemo-sky/\n")
    commit_all(place)


def typed(place: Path, *words: str, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """`nemo-sky WORDS` in a forked child, after ``before``: its exit code (-9: killed), what it printed."""
    said = place / ".nemo-sky" / "said.txt"

    def child() -> None:
        os.chdir(place)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        before()
        try:
            nemo_sky(list(words))
        except SystemExit as ended:
            os._exit(int(ended.code or 0))

    code = in_child(child)
    return code, said.read_text() if said.exists() else ""


def survey(place: Path) -> tuple[list[str], list[str]]:
    """The effects of a launch that nothing disturbs, in order, and the modules that it imported."""
    effects, modules = (place / ".nemo-sky" / name for name in ("effects", "modules"))

    def child() -> None:
        os.chdir(place)
        os.dup2(os.open(place / ".nemo-sky" / "said.txt", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        sink, names = (os.open(path, os.O_WRONLY | os.O_CREAT) for path in (effects, modules))
        before_effects(lambda effect: os.write(sink, f"{effect!r}\n".encode()))
        with suppress(SystemExit):
            nemo_sky(list(LAUNCH))
        os.write(names, "\n".join(sys.modules).encode())

    assert in_child(child) == 0
    return effects.read_text().splitlines(), modules.read_text().split()


def again(place: Path) -> list[str]:
    """Type the same command until it ends well; what each said."""
    story = []
    deadline = time.monotonic() + PATIENCE_S
    while True:
        code, said = typed(place, *LAUNCH)
        story.append(f"-> {code}\n{said}")
        if code == 0:
            return story
        active = re.search(r"(\S+) is this very run and is", said)
        if not active or time.monotonic() > deadline:
            raise AssertionError("the same command does not end well:\n" + "\n".join(story))
        typed(place, "runs", "logs", "-f", active[1])
        story.append("(waited)")


def look(place: Path) -> None:
    """What must hold in the end."""
    here = project.read(place)
    (run,) = runs.every(here.runs)
    store = open_store(here.artifacts)
    assert registry.versions(store, "demo-data") == [1]
    (state,) = history.every(here)
    assert state["status"] == "SUCCEEDED"
    assert history.every(here, active_only=True) == []
    assert processes_of(Project(place)) == []
    lines = receipts.lines(open_ledger(store))
    assert {line.entry.run for line in lines} == {run.run_id}
    assert [line.entry.key for line in lines if line.entry.is_open(now_ms())] == [], "reserved for nobody"
    assert sum(line.entry.cost for line in lines) <= BUDGET * MICROS
    tracked, attempts = in_mlflow(here.tracking, run.run_id)
    assert tracked.info.status == "FINISHED"
    assert "cost_usd" in tracked.data.metrics
    assert [attempt.info.status for attempt in attempts] == ["FINISHED"]


@dataclass(frozen=True)
class Moment:
    """Before effect ``number``, or so many seconds ``later``."""

    number: int
    what: str
    later: float | None = None

    def __str__(self) -> str:
        return f"{self.number}{'' if self.later is None else f'+{self.later:g}'}"


def moments(effects: list[str]) -> list[Moment]:
    """Every other one of the preflight, which only sees whether things can be written; all that come after;
    and some while the launcher waits for the supervisor, and follows the run."""
    found = [Moment(number, what) for number, what in enumerate(effects)]
    decides = next(one.number for one in found if "runs/.lock" in one.what)
    (start,) = [one for one in found if "launcher.backends.supervisor" in one.what]
    return [
        *found[:decides:2],
        *found[decides:],
        *(replace(start, later=later) for later in DELAYS),
    ]


def broken(moment: Moment, place: Path, database: Path) -> str | None:
    """How a kill at this moment breaks the promise; None when it does not."""
    make(place, database)
    code, said = typed(place, *LAUNCH, before=lambda: die_before_effect(moment.number, moment.later))
    assert code in (0, -signal.SIGKILL), f"{code}: {said}"
    story: list[str] = []

    def child() -> None:
        looked = place / ".nemo-sky" / "looked.txt"
        try:
            look(place)
        except BaseException:
            looked.write_text(traceback.format_exc())
            raise

    try:
        story = again(place)
    except AssertionError as error:
        return str(error)
    if in_child(child):
        return (place / ".nemo-sky" / "looked.txt").read_text() + "\n".join(story)
    return None


def everywhere(database: Path, folder: Path, only: list[str]) -> None:
    make(folder / "whole", database)
    effects, modules = survey(folder / "whole")
    for name in modules:
        with suppress(Exception):
            importlib.import_module(name)
    found = [one for one in moments(effects) if not only or str(one) in only]
    print(f"{len(found)} moments", flush=True)

    def lane(which: int) -> None:
        for moment in found[which::LANES]:
            if why := broken(moment, folder / str(moment), database):
                print(f"killed at {moment}, {moment.what}:\n{why}", flush=True)

    started = [start_child(partial(lane, which)) for which in range(LANES)]
    assert [ended(pid) for pid in started] == [0] * LANES


if __name__ == "__main__":
    everywhere(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
