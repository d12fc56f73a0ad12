"""THE launch flow: from a request to finished runs. Read it from top to bottom.

    Request -> stages -> plans (values: nothing started) -> preflight
            -> for each stage: pin inputs -> skip, resume or begin -> submit -> follow -> Outcome

Everything that can be refused is refused before the first stage starts; a dry run stops at the plans.
"""

from __future__ import annotations

import shlex
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from launcher import config, fuse, inputs, luggage, pipeline, provenance, runs, secrets, strategy, task
from launcher import preflight as checks
from launcher.errors import BudgetReached, DeadlineReached, Refused, RunFailed, UserError
from launcher.money import booking, narrow
from launcher.plan import Plan, Request, awaited, pin, plans, select, to_task
from launcher.project import Project

if TYPE_CHECKING:
    from launcher.artifacts.manifest import Manifest
    from launcher.artifacts.store import Store
    from launcher.backends import State

Say = Callable[[str], None]
TAIL_LINES = 15


@dataclass(frozen=True)
class Outcome:
    """How one stage ended: ``made``, ``skipped`` (it was made before) or ``submitted`` (detached)."""

    plan: Plan
    status: str
    run_id: str
    seconds: float
    output: Manifest | None


def launch(request: Request, project: Project, say: Say, log: Say) -> list[Outcome]:
    """Run the requested stages in order, each from the artifact before.

    ``say`` takes lines about the launch, ``log`` the job's own lines. Raises UserError or Refused before
    anything starts, RunFailed when a stage fails, BudgetReached or DeadlineReached when its money or time
    ends, KeyboardInterrupt after stopping what it interrupted.
    """
    drafts = plans(request, project, select(request, project))
    store = open_store(project)
    preflight(request, project, drafts, store)
    if pipeline.fits(drafts, request, project):
        return pipeline.launch(drafts, request, project, store, say, log)

    made: dict[str, Manifest] = {}
    outcomes = []
    for number, draft in enumerate(drafts, 1):
        say(f"[{number}/{len(drafts)}] {draft.name}" if len(drafts) > 1 else draft.name)
        plan = pin(draft, request, project, store, made)
        outcome = run_stage(plan, request, project, store, say, log)
        outcomes.append(outcome)
        if outcome.output:
            made[outcome.output.name] = outcome.output
    return outcomes


def dry_run(request: Request, project: Project, say: Say) -> list[tuple[Plan, task.Task]]:
    """The very tasks that a launch would submit, inputs pinned where the store can tell. Starts nothing."""
    drafts = plans(request, project, select(request, project))
    result = []
    for draft, later in zip(drafts, awaited(drafts), strict=True):
        plan = draft
        try:
            if not later:
                plan = pin(draft, request, project, open_store(project), {})
        except Refused as missing:
            say(f"{draft.name}: a launch would be refused: {missing.message}")
        run_id = runs.new_id(plan.spec.family, plan.spec.stage)
        result.append((plan, task_of_run(plan, project, run_id)))
    return result


def preflight(request: Request, project: Project, drafts: Sequence[Plan], store: Store) -> None:
    """Refuse now what would fail later. ``--force`` goes on in spite of estimates, never of what is known."""
    if request.detach and len(drafts) > 1 and not pipeline.fits(drafts, request, project):
        raise UserError(
            "--detach of several stages needs SkyPilot to begin each after the one before",
            hint="as managed jobs without caps: --managed or --spot on a cloud; else one stage at a time",
        )
    if request.work and len(drafts) > 1:
        raise UserError("--work says how long one stage works; launch the stages one by one with it")
    if request.resume and len(drafts) > 1:
        raise UserError("--resume names a run of one stage; without it, `all` resumes what is unfinished")
    tasks: dict[str, task.Task] = {}
    for draft in drafts:
        checks.require(checks.of_plan(draft, project, request.secrets), request.force)
        submitted = tasks[draft.name] = task_of_run(draft, project, draft.name)
        booking.check(draft, request, project, submitted)
        checks.require(checks.quotas(submitted), request.force)
    checks.require(checks.of_project(project, store), request.force)
    beginning = begin_anew(drafts, request, project, store)
    booking.foresee([(draft, tasks[draft.name]) for draft in beginning], request, project, store)
    for profile in {draft.profile.infra: draft.profile for draft in drafts}.values():
        checks.require(checks.of_place(profile), request.force)
    for draft, later in zip(drafts, awaited(drafts), strict=True):
        here = {name: item for name, item in draft.inputs.items() if name not in later}
        inputs.pin(here, store, project.tracking, {})


def begin_anew(drafts: Sequence[Plan], request: Request, project: Project, store: Store) -> list[Plan]:
    """The stages that nothing is there of: neither what they make nor an earlier run of the same recipe,
    of which only what is left would be done."""
    known = {run.recipe for run in runs.every(project.runs)}
    made: dict[str, Manifest] = {}
    result = []
    for draft, later in zip(drafts, awaited(drafts), strict=True):
        if not request.force and all(draft.inputs[name].artifact in made for name in later):
            done = find_output(store, pin(draft, request, project, store, made))
            if done:
                made[done.name] = done
                continue
        if draft.recipe not in known:
            result.append(draft)
    return result


def run_stage(plan: Plan, request: Request, project: Project, store: Store, say: Say, log: Say) -> Outcome:
    """Skip, resume or begin one stage, and follow it to its end."""
    from launcher import backends

    with runs.exclusive(project.runs):
        if not request.force and not request.resume and (done := find_output(store, plan)):
            made_by = str(done.producer.get("run_id", "an import"))
            say(f"  already made by {made_by}: {done.uri} (--force makes it again)")
            return Outcome(plan, "skipped", made_by, 0.0, done)
        run = begin_or_resume(plan, request, project, say)
        wanted = task_of_run(plan, project, run.run_id)
        ours = strategy.is_ours(plan, say)
        booked = booking.book(plan, run, request, project, store, wanted, say)
        runs.save(project.runs, run)
        submitted = write_job(plan, run, project, request, booked, ours)
        folder = runs.directory(project.runs, run.run_id)
        backend = backends.get(run.backend)
        hidden = secrets.of(plan.profile, plan.image, request.secrets)
        say(f"  run {run.run_id} on {plan.profile.name}, {plan.nodes} node{'s' if plan.nodes > 1 else ''}")
        if plan.profile.backend != "local":
            say(
                f"  as a managed job: {plan.managed}"
                if plan.managed
                else f"  as a job on its own cluster {run.run_id}"
            )
        if regions := narrow.what_is_left(submitted):
            say(f"  the hourly cap leaves {regions}")
        try:
            backend.submit(folder, submitted, secrets=hidden, managed=plan.managed is not None)
        except UserError:
            booking.withdraw(store, booked)
            raise
    if request.detach:
        say(f"  detached: {come_back(run.run_id)}")
        return Outcome(plan, "submitted", run.run_id, 0.0, None)
    return follow(plan, run, project, store, say, log)


def follow(plan: Plan, run: runs.Run, project: Project, store: Store, say: Say, log: Say) -> Outcome:
    """Follow a submitted run to its end, and say what it made. Raises RunFailed, BudgetReached or
    DeadlineReached when that is nothing, KeyboardInterrupt after stopping it or leaving it be, as its backend
    has it."""
    from launcher import backends
    from launcher.lineage import sync

    started = datetime.now(UTC)
    folder = runs.directory(project.runs, run.run_id)
    backend = backends.get(run.backend)
    try:
        for line in backend.follow(folder):
            log(line)
    except KeyboardInterrupt:
        if backend.OUTLIVES_LAUNCHER:
            say(f"  {run.run_id} goes on: {come_back(run.run_id)}")
            raise
        say(f"  stopping {run.run_id} ...")
        backend.cancel(folder)
        if receipt := booking.settle(store, run, backend.status(folder)):
            say(f"  {receipt}")
        sync.sync_run(store, project.tracking, run.run_id)
        say("  stopped; the same command resumes it at its last checkpoint")
        raise
    sync.sync_run(store, project.tracking, run.run_id)

    state, receipt = finish(run, project, store)
    if receipt:
        say(f"  {receipt}")
    if state.status == "BUDGET_REACHED":
        raise BudgetReached(
            f"{plan.name} reached its budget: {state.reason or 'no reason was given'}",
            hint="the same command with more --budget goes on from its last checkpoint",
        )
    if state.status == "DEADLINE_REACHED":
        raise DeadlineReached(
            f"{plan.name} reached its deadline: {state.reason or 'no reason was given'}",
            hint="the same command, with a deadline from now on or without, goes on from its last checkpoint",
        )
    if state.status != "SUCCEEDED":
        lines = "\n".join(f"    {line}" for line in last_words(state.tail))
        raise RunFailed(
            f"{plan.name} ended as {state.status}: {state.reason or 'no reason was given'}\n{lines}",
            hint=f"the whole log: `nemo-sky runs logs {run.run_id}`; the same command resumes the run",
        )
    seconds = (datetime.now(UTC) - started).total_seconds()
    return Outcome(plan, "made", run.run_id, seconds, output_of(store, plan.output, run.run_id))


def finish(run: runs.Run, project: Project, store: Store) -> tuple[State, str | None]:
    """A run has ended: release its nodes and settle its money. Returns how it ended, and its receipt in a
    line. May be repeated."""
    from launcher import backends

    folder = runs.directory(project.runs, run.run_id)
    backend = backends.get(run.backend)
    state = backend.status(folder)
    backend.down(folder)
    return state, booking.settle(store, run, state)


def come_back(run_id: str) -> str:
    """How to follow and how to stop a run that goes on without its launcher."""
    return f"`nemo-sky runs logs -f {run_id}` follows it, `nemo-sky runs cancel {run_id}` stops it"


def last_words(tail: Sequence[str]) -> list[str]:
    """The end of a failing node's log without torchrun's own report, which hides what the trainer said."""
    report = [n for n, line in enumerate(tail) if "elastic/multiprocessing" in line or "bin/torchrun" in line]
    if not report or report[0] < 2:
        return list(tail[-TAIL_LINES:])
    ours = [line for line in tail[report[0] :] if line.startswith("[nemo-sky]")]
    return [*tail[: report[0]], *ours][-TAIL_LINES:]


def begin_or_resume(plan: Plan, request: Request, project: Project, say: Say) -> runs.Run:
    """An unfinished run of the same fingerprint is taken up again; else a new one begins.

    Raises Refused when that run is still active, UserError when ``--resume`` names another stage's run, or
    one of another experiment.
    """
    from launcher import backends

    candidates: Iterable[runs.Run] = ()
    if request.resume:
        earlier = runs.load(project.runs, request.resume)
        if (earlier.family, earlier.stage) != (plan.spec.family, plan.spec.stage):
            raise UserError(f"--resume {earlier.run_id}: that is a run of {earlier.family}/{earlier.stage}")
        if request.caps.experiment not in (None, earlier.experiment):
            home = f"experiment {earlier.experiment}" if earlier.experiment else "no experiment"
            raise UserError(f"--resume {earlier.run_id}: that run is of {home}, and stays there")
        candidates = [earlier]
    elif trial := request.trial:
        candidates = [run for run in runs.every(project.runs) if run.run_id == trial.run_id]
    elif not request.force:
        candidates = [
            run
            for run in runs.every(project.runs)
            if _is_of(run, plan, project) and request.caps.experiment in (None, run.experiment)
        ]
    for run in candidates:
        state = backends.get(run.backend).status(runs.directory(project.runs, run.run_id))
        if state.active:
            raise Refused(
                f"{run.run_id} is this very run and is {state.status.lower()} since {run.created_at}",
                hint=f"{come_back(run.run_id)}; --force starts another",
            )
        if state.status != "SUCCEEDED":
            say(f"  resuming {run.run_id}, which was {state.status.lower()}")
            return run
    assert plan.fingerprint is not None, "inputs are pinned before a run begins"
    return new_run(plan, request, project)


def new_run(plan: Plan, request: Request, project: Project) -> runs.Run:
    """The record of a run that begins; its fingerprint is empty while an input is still to be made."""
    return runs.Run(
        run_id=request.trial.run_id if request.trial else runs.new_id(plan.spec.family, plan.spec.stage),
        family=plan.spec.family,
        stage=plan.spec.stage,
        config=plan.config_name,
        fingerprint=plan.fingerprint or "",
        recipe=plan.recipe,
        cluster=plan.profile.name,
        backend=plan.profile.backend,
        nodes=plan.nodes,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        output=plan.output,
        artifacts=project.artifacts,
        tracking=project.tracking,
        experiment=request.caps.experiment,
    )


def _is_of(run: runs.Run, plan: Plan, project: Project) -> bool:
    """Whether an earlier run is the plan's: a stage of a pipeline has left its fingerprint in its journal."""
    from launcher.lineage import sync

    if run.fingerprint or run.recipe != plan.recipe:
        return run.fingerprint == plan.fingerprint
    attempts = sync.attempts(open_store(project), run.run_id)
    return any(events[0].get("run", {}).get("fingerprint") == plan.fingerprint for events in attempts)


def write_job(
    plan: Plan,
    run: runs.Run,
    project: Project,
    request: Request,
    booked: booking.Booking | None,
    ours: bool = False,
) -> task.Task:
    """Write the run's own files and return the task that names them. Never a secret: those are variables.

    ``booked`` is None for a run that nothing caps and whose agent itself enters it in the ledger; ``ours``
    says that our own strategy recovers it.
    """
    folder = runs.directory(project.runs, run.run_id)
    commit = provenance.commit_of(project.root)
    facts = {
        **plan.job["provenance"],
        "fingerprint": plan.fingerprint,
        "git_sha": commit.sha,
        "git_dirty": commit.dirty,
        "user": provenance.user_name(),
        "command": request.command,
        **({"sweep": request.trial.sweep, "trial": request.trial.number} if request.trial else {}),
    }
    patches = {"provenance.patch": commit.patch}
    if plan.source:  # the script's own repository is another than the project's
        theirs = provenance.commit_of(plan.source.root)
        facts |= {"cookbook_git_sha": theirs.sha, "cookbook_git_dirty": theirs.dirty}
        patches["cookbook.patch"] = theirs.patch
    submitted = task_of_run(plan, project, run.run_id)
    if ours and booked:
        recovery = strategy.job_recovery(submitted, plan, request, project, booked)
        submitted["resources"]["job_recovery"] = recovery
    if booked and booked.capped and plan.profile.backend == "sky":
        submitted = fuse.arm(submitted, booked.lease, booked.longest)
    if names := secrets.of(plan.profile, plan.image, request.secrets):
        submitted["secrets"] = dict.fromkeys(names)
    runs.write_text(folder / "job" / "train.yaml", config.dump_yaml(plan.values))
    runs.write_text(
        folder / "job" / "job.yaml",
        config.dump_yaml(
            {
                "run_id": run.run_id,
                "submission": uuid.uuid4().hex,
                "recipe_fingerprint": plan.recipe,
                **plan.job,
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
    runs.write_text(folder / "task.yaml", task.dump(submitted))
    return submitted


def find_output(store: Store, plan: Plan) -> Manifest | None:
    """The newest artifact that a run with the plan's exact fingerprint made."""
    from launcher.artifacts import registry

    if plan.output is None or plan.fingerprint is None:
        return None
    return registry.made_with(store, plan.output, "fingerprint", plan.fingerprint)


def output_of(store: Store, name: str | None, run_id: str) -> Manifest | None:
    """The artifact ``name`` that this run published."""
    from launcher.artifacts import registry

    return registry.made_with(store, name, "run_id", run_id) if name else None


def task_of_run(plan: Plan, project: Project, run_id: str) -> task.Task:
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


def open_store(project: Project) -> Store:
    from launcher.artifacts import store

    return store.open_store(project.artifacts, project.s3_endpoint)


def command_line(argv: Sequence[str]) -> str:
    """The command as it was typed, for the record of a run."""
    return shlex.join(argv)
