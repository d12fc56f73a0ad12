"""A run's own files, and the task that names them."""

from __future__ import annotations

import time
import uuid
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from launcher import config, fuse, luggage, provenance, runs, strategy, task
from launcher.money import narrow
from launcher.money.want import want_of
from launcher.plan import Plan, Request, to_task
from launcher.project import Project

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.money import booking


def write(
    plan: Plan,
    run: runs.Run,
    project: Project,
    request: Request,
    store: Store,
    hidden: Iterable[str],
    booked: booking.Booking | None = None,
    ours: bool = False,
) -> task.Task:
    """Write the run's own files and return the task that names them, and the secrets ``hidden``: their values
    are for SkyPilot alone.

    ``booked`` is None for a run that nothing caps and whose agent itself enters it in the ledger; ``ours``
    says that our own strategy recovers it.
    """
    folder = runs.directory(project.runs, run.run_id)
    commit = provenance.commit_of(project.root, request.secrets)
    facts = {
        **plan.job["provenance"],
        "fingerprint": plan.fingerprint,
        "git_sha": commit.sha,
        "git_dirty": commit.dirty,
        "user": provenance.user_name(),
        "command": request.command,
        **({"sweep": request.trial.sweep, "trial": request.trial.number} if request.trial else {}),
    }
    facts |= {"patch_lacks": commit.left_out} if commit.left_out else {}
    patches = {"provenance.patch": commit.patch}
    if plan.source:  # the script's own repository is another than the project's
        theirs = provenance.commit_of(plan.source.root, request.secrets)
        facts |= {"cookbook_git_sha": theirs.sha, "cookbook_git_dirty": theirs.dirty}
        facts |= {"cookbook_patch_lacks": theirs.left_out} if theirs.left_out else {}
        patches["cookbook.patch"] = theirs.patch
    submitted = as_submitted(plan, project, request, run.run_id, store, hidden, booked, ours)
    facts |= gpus_of(submitted)
    runs.write_text(folder / "job" / "train.yaml", config.dump_yaml(plan.values))
    runs.write_text(
        folder / "job" / "job.yaml",
        config.dump_yaml(
            {
                "run_id": run.run_id,
                "submission": uuid.uuid4().hex,
                "recipe_fingerprint": plan.recipe,
                **plan.job,
                "checkpoints": checkpoints_of(plan, project, request, submitted, store),
                **(booked.job if booked else {}),
                "experiment": run.experiment or plan.job["experiment"],
                "provenance": facts,
            }
        ),
    )
    for name, patch in patches.items():
        if patch:
            runs.write_text(folder / name, patch)
    luggage.files_of(folder)
    if plan.profile.backend == "sky" and not has_launcher(project):
        luggage.copy_of_launcher(folder)
    runs.write_text(folder / runs.UNTRACKED, "nobody has seen its end yet\n")
    runs.write_text(folder / "task.yaml", task.dump(submitted))
    return submitted


def as_submitted(
    plan: Plan,
    project: Project,
    request: Request,
    run_id: str,
    store: Store,
    hidden: Iterable[str],
    booked: booking.Booking | None,
    ours: bool,
) -> task.Task:
    """The whole task, as ``write`` writes it and a dry run shows it: ``task_of`` with the names of its
    secrets and what only its booking says, our recovery and the fuse."""
    submitted = task_of(plan, project, run_id)
    if ours and booked:
        recovery = strategy.job_recovery(submitted, plan, request, store, booked)
        submitted["resources"]["job_recovery"] = recovery
    elif booked and booked.limited and plan.managed:
        submitted = strategy.begun_once(submitted)
    if booked and booked.limited and plan.profile.backend == "sky":
        terms = (booked.lease, booked.longest, booked.deadline)
        submitted = fuse.arm(submitted, *terms, capped=booked.capped)
    if names := dict.fromkeys(hidden):
        submitted["secrets"] = names
    return submitted


def gpus_of(submitted: task.Task) -> dict[str, str | None]:
    """``{"gpus": "H100:8"}`` of each node, None without; nothing where one of several types will do, for then
    nobody knows here which it will be."""
    kinds = {f"{kind}:{want.count}" for want in want_of(submitted) for kind in want.gpus}
    return {} if len(kinds) > 1 else {"gpus": next(iter(kinds), None)}


def checkpoints_of(
    plan: Plan, project: Project, request: Request, submitted: task.Task, store: Store
) -> dict[str, Any] | None:
    """What job.yaml says of checkpoints: of a run on spot also how often it saves, unless the launch itself
    says that, and how long its nodes are expected to last, in seconds, by what earlier runs saw too:
    anywhere, and in the zones that somebody knows."""
    kept: dict[str, Any] | None = plan.job["checkpoints"]
    spot = plan.managed and (plan.profile.spot or plan.profile.spot_first)
    every = project.money.checkpoint_every
    if (
        kept is None
        or not spot
        or every is None
        or any("save_interval" in text for text in request.overrides)
    ):
        return kept
    from launcher.money import sightings  # and NumPy

    want = want_of(submitted)[0]
    kind = sightings.kind(want.gpus[0], want.count, want.nodes) if want.count else None
    anywhere, by_zone = sightings.mean_stays(store, kind, time.time())
    return {**kept, "every": every, "between_preemptions": anywhere, "between_by_zone": by_zone}


def task_of(plan: Plan, project: Project, run_id: str) -> task.Task:
    """Its files travel by a file mount of the run's own, so that concurrent launches never race; it goes to
    no region that is dearer than the caps allow."""
    submitted = to_task(
        plan,
        project,
        job_dir=f"~/.nemo-sky/jobs/{run_id}",
        job_source=str(runs.directory(project.runs, run_id) / "job"),
        run_id=run_id,
    )
    if plan.profile.backend == "sky":
        submitted["envs"] |= ports_of(run_id)
        if not has_launcher(project):
            code = runs.directory(project.runs, run_id) / "code" / "launcher"
            submitted["file_mounts"] |= {f"~/.nemo-sky/code/{run_id}/launcher": str(code)}
    submitted = narrow.to_price(plan.profile, submitted, plan.max_hourly)
    return {**submitted, "workdir": str(project.root)}


def has_launcher(project: Project) -> bool:
    """Whether the working directory takes the launcher to the nodes."""
    return (project.root / "launcher" / "agent").is_dir()


def ports_of(run_id: str) -> dict[str, str]:
    """Where the run's own rendezvous and Ray listen: by its name, for two runs may share a Slurm node."""
    slot = zlib.crc32(run_id.encode()) % 5000
    return {"NEMO_SKY_MASTER_PORT": str(20000 + slot), "NEMO_SKY_RAY_PORT": str(25000 + slot)}
