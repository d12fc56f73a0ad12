"""A sweep from its request to its report: refuse what is wrong, take up what is there, drive, tell.

.nemo-sky/sweeps/NAME/
    sweep.json     what is swept, written once      study.db      Optuna's trials
    best.yaml      the best trial's config          trials.json, chart.png
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import job, provenance, runs
from launcher import launch as flow
from launcher import plan as plans
from launcher.errors import Refused, UserError
from launcher.lineage import mlflow_sweeps
from launcher.money import account as accounts
from launcher.money import orders
from launcher.money.gate import TooDear
from launcher.money.ledger import account_name, now_ms, open_ledger
from launcher.project import Project
from launcher.sweep import report, space
from launcher.sweep.report import Result
from launcher.sweep.study import Study, best
from launcher.sweep.trials import Drive, Say, Sweep, drive

if TYPE_CHECKING:
    from launcher.plan import Plan

PARALLEL = {"local": 1, "fake": 1, "sky": 8}  # trials at once, unless it is said


def folder_of(project: Project, name: str) -> Path:
    return project.state / "sweeps" / name


def default_name(request: plans.Request, path: Path) -> str:
    """``tiny-pretrain-lr`` for the space file ``lr.yaml``."""
    return f"{request.family}-{request.stage.replace('/', '-')}-{path.stem}"


def sweep(asked: Sweep, project: Project, say: Say) -> Result:
    """Run the sweep, or go on with it; returns what came out and leaves it in the sweep's folder.

    Raises UserError or Refused before anything is spent; what :func:`launcher.sweep.trials.drive` raises.
    """
    asked, draft = checked(asked, project)
    folder, store = folder_of(project, asked.name), flow.open_store(project)
    _require_an_end(asked, draft, project)
    try:
        flow.preflight(asked.request, project, [draft], store)
    except TooDear:
        if not (folder / "study.db").exists():
            raise
        # What is left pays no whole trial, but perhaps the rest of one that is on.
    with _alone(folder, asked.name):
        _keep(folder, asked)
        study = Study(
            folder / "study.db", asked.space, asked.space.resource.max if asked.space.resource else None
        )
        ledger, account = open_ledger(store), account_name("", asked.name)
        user = provenance.user_name()
        # From here on the ledger lets nothing pass the budget, whatever becomes of this process.
        ledger.change(account, lambda held: accounts.set_budget(held, None, asked.budget, user, now_ms()))
        parent = mlflow_sweeps.Parent(project.tracking, asked.name, say)
        parent.begin(_definition(asked), user)
        here = Drive(asked, project, store, study, draft.profile.backend, say)
        why = "it was interrupted"
        try:
            why = drive(here)
        finally:
            file = f"{project.show(folder)}/best.yaml"
            published = draft.output is not None
            result = report.make(asked, study.trials(), ledger.read(account), why, file, published)
            report.save(result, folder)
            if chosen := best(study.trials(), asked.space.direction):
                _save_best(folder, asked, chosen.number, chosen.params, chosen.run_id, project)
        parent.end(result)
    return result


def checked(asked: Sweep, project: Project) -> tuple[Sweep, Plan]:
    """The sweep with what the config adds, and the plan of the config as it is. Raises UserError."""
    request, resource = asked.request, asked.space.resource
    [draft] = plans.plans(request, project, plans.select(request, project))
    space.check(asked.space, draft.composed, draft.spec.sky.config_keys, request.overrides)
    if resource is None:
        return asked, draft
    most = resource.max or space.lookup(draft.composed.values, resource.key)
    if most <= resource.min:
        raise UserError(
            f"a trial ends at {resource.key} {most}, before it is judged at {resource.min}",
            where=asked.space.where("resource", "min"),
        )
    request = replace(request, overrides=(*request.overrides, space.override(resource.key, most)))
    changed = replace(asked.space, resource=replace(resource, max=most))
    [draft] = plans.plans(request, project, plans.select(request, project))
    return replace(asked, request=request, space=changed), draft


def _require_an_end(asked: Sweep, draft: Plan, project: Project) -> None:
    """A budget never ends where nothing costs."""
    price, _ = orders.prices_of(draft, job.task_of(draft, project, draft.name), capped=True)
    if price == 0 and asked.trials is None:
        raise UserError(
            f"{draft.profile.name} costs nothing, so the budget would never end",
            hint="say --trials N, or give the cluster profile a `price_per_hour`",
        )


def _definition(asked: Sweep) -> dict[str, Any]:
    """What makes two sweeps the same: not their money, their number of trials, or where they run."""
    request = asked.request
    return {
        "stage": f"{request.family}/{request.stage}",
        "config": request.config,
        "overrides": list(request.overrides),
        "script_args": list(request.script_args),
        "nodes": request.nodes,
        **{key: value for key, value in asked.space.file.values.items() if key != "seed"},
    }


def _keep(folder: Path, asked: Sweep) -> None:
    """Write down what is swept. Raises UserError when a sweep of this name is of something else."""
    path, now = folder / "sweep.json", json.loads(json.dumps(_definition(asked)))
    if not path.exists():
        runs.write_text(path, json.dumps(now, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    for key in dict.fromkeys((*before, *now)):
        if before.get(key) != now.get(key):
            raise UserError(
                f"the sweep {asked.name} has another {key}: {json.dumps(before.get(key))}, not "
                f"{json.dumps(now.get(key))}",
                hint="--name OTHER begins a new one",
            )


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """One process drives a sweep. The lock is free when its holder is dead, however it died."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"the sweep {name} is running already", hint="`nemo-sky queue` shows its trials"
            ) from None
        yield


def _save_best(folder: Path, asked: Sweep, number: int, params: Any, run_id: str, project: Project) -> None:
    """The whole config of the best trial: launching it finds the artifact that the trial made."""
    from launcher.config import dump_yaml

    values = [space.override(key, value) for key, value in params.items()]
    request = replace(asked.request, overrides=(*asked.request.overrides, *values))
    [plan] = plans.plans(request, project, plans.select(request, project))
    head = f"# Trial {number} of the sweep {asked.name}, run {run_id}.\n"
    runs.write_text(folder / "best.yaml", head + dump_yaml(plan.composed.values))
