"""THE launch flow: from a request to finished runs. Read it from top to bottom.

    Request -> stages -> plans (values: nothing started) -> preflight
            -> for each stage: pin inputs -> skip, resume or begin -> submit -> follow -> Outcome

Everything that can be refused is refused before the first stage starts; ``launcher.dry`` stops at the plans.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from launcher import inputs, job, pipeline, runs, secrets, strategy, task
from launcher import preflight as checks
from launcher.errors import BudgetReached, DeadlineReached, Refused, RunFailed, UserError
from launcher.money import able, booking, narrow
from launcher.plan import Plan, Request, awaited, pin, plans, select
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
    request = replace(request, deadline_at=booking.deadline_at(request, project))
    drafts = plans(request, project, select(request, project))
    store = open_store(project)
    needs = preflight(request, project, drafts, store)
    if pipeline.fits(drafts, request, project):
        return pipeline.launch(drafts, request, project, store, say, log)

    made: dict[str, Manifest] = {}
    outcomes = []
    for number, draft in enumerate(drafts, 1):
        say(f"[{number}/{len(drafts)}] {draft.name}" if len(drafts) > 1 else draft.name)
        plan = pin(draft, request, project, store, made)
        later = sum(needs.get(one.name, 0.0) for one in drafts[number:])
        outcome = run_stage(plan, booking.leaving(request, later), project, store, say, log)
        outcomes.append(outcome)
        if outcome.output:
            made[outcome.output.name] = outcome.output
    return outcomes


def preflight(request: Request, project: Project, drafts: Sequence[Plan], store: Store) -> dict[str, float]:
    """Refuse now what would fail later. ``--ignore-estimates`` passes over estimates, never over facts.
    Returns what ``booking.foresee`` does."""
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
        submitted = tasks[draft.name] = job.task_of(draft, project, draft.name)
        able.require(draft, submitted, goes_on=request.goes_on)
        checks.require(checks.of_plan(draft, project, request.secrets), request.goes_on)
        booking.check(draft, request, project, submitted)
    checks.require(checks.quotas(tasks.values()), request.goes_on)
    checks.require(checks.of_project(project, store), request.goes_on)
    for profile in {draft.profile.infra: draft.profile for draft in drafts}.values():
        checks.require(checks.of_place(profile), request.goes_on)
    checks.require(checks.controller(drafts), request.goes_on)
    # By now SkyPilot's API server is up, and can say which strategy recovers a job.
    beginning = begin_anew(drafts, request, project, store)
    needs = booking.foresee([(draft, tasks[draft.name]) for draft in beginning], request, project, store)
    for draft, later in zip(drafts, awaited(drafts), strict=True):
        here = {name: item for name, item in draft.inputs.items() if name not in later}
        inputs.pin(here, store, project.tracking, {})
    return needs


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
    with runs.exclusive(project.runs):
        done = None if request.force or request.resume else find_output(store, plan)
        run = None if done else begin(plan, request, project, store, say)
    if run is None:
        assert done
        made_by = str(done.producer.get("run_id", "an import"))
        say(f"  already made by {made_by}: {done.uri} (--force makes it again)")
        see_off(made_by, project, store, say)
        return Outcome(plan, "skipped", made_by, 0.0, done)
    if request.detach:
        say(f"  detached: {come_back(run.run_id)}")
        return Outcome(plan, "submitted", run.run_id, 0.0, None)
    return follow(plan, run, project, store, say, log)


def begin(plan: Plan, request: Request, project: Project, store: Store, say: Say) -> runs.Run:
    """Resume or begin the run of one stage: reserve its money, and submit it."""
    from launcher import backends
    from launcher.artifacts.store import StoreError

    run = begin_or_resume(plan, request, project, say)
    wanted = job.task_of(plan, project, run.run_id)
    ours = strategy.is_ours(plan, say)
    hidden = secrets.of_plan(plan, request.secrets)
    folder = runs.directory(project.runs, run.run_id)
    backend = backends.get(run.backend)
    is_new = not folder.exists()
    runs.save(project.runs, run)  # before its money: what is reserved for a run that nobody knows stays so
    try:
        booked = booking.book(plan, run, request, project, store, wanted, say, ours)
    except StoreError:
        raise  # it may be reserved all the same
    except UserError:
        if is_new:
            runs.forget(project.runs, run)
        raise
    try:
        submitted = job.write(plan, run, project, request, store, hidden, booked, ours)
        count = f"{plan.nodes} node{'s' if plan.nodes > 1 else ''}"
        say(f"  run {run.run_id} on {plan.profile.name}, {count}")
        if plan.profile.backend != "local":
            say(
                f"  as a managed job: {plan.managed}"
                if plan.managed
                else f"  as a job on its own cluster {run.run_id}"
            )
        if regions := narrow.what_is_left(submitted):
            say(f"  the hourly cap leaves {regions}")
        backend.submit(folder, submitted, secrets=hidden, managed=plan.managed is not None)
    except BaseException:  # Ctrl-C, a full disk: should it run after all, its agent reserves anew
        booking.withdraw(store, booked)
        raise
    return run


def follow(plan: Plan, run: runs.Run, project: Project, store: Store, say: Say, log: Say) -> Outcome:
    """Follow a submitted run to its end, and say what it made. Raises RunFailed, BudgetReached or
    DeadlineReached when that is nothing, KeyboardInterrupt after stopping it or leaving it be, as its backend
    has it."""
    from launcher import backends, history

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
        history.track(project, run)
        say("  stopped; the same command resumes it at its last checkpoint")
        raise
    state = see_end(run, project, store, say)
    if state.active:
        raise Refused(f"{run.run_id} goes on, but its log does not", hint=come_back(run.run_id))
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


def see_off(run_id: str, project: Project, store: Store, say: Say) -> None:
    """See to the end of a run whose launcher did not: it was killed, or had detached. The run has published,
    so that it ends within moments where it has not ended yet."""
    from launcher import backends

    folder = runs.directory(project.runs, run_id)
    if not (folder / runs.UNTRACKED).exists():
        return
    run = runs.load(project.runs, run_id)
    backend = backends.get(run.backend)
    try:
        if backend.status(folder).active:
            for _ in backend.follow(folder, from_start=False):
                continue
        see_end(run, project, store, say)
    except Refused as error:  # its place does not answer; what it made is here all the same
        say(f"  {run_id}: {error.message}")


def see_end(run: runs.Run, project: Project, store: Store, say: Say) -> State:
    """A run has ended: ``finish`` it and show it in MLflow. Returns how it ended; that it is active says that
    it has not."""
    from launcher import history

    # The nodes first: neither they nor the money wait for a tracker that cannot be reached.
    state, receipt = finish(run, project, store)
    if state.active:
        return state
    if receipt:
        say(f"  {receipt}")
    if trouble := history.track(project, run):
        say(f"  {trouble}")
    return state


def finish(run: runs.Run, project: Project, store: Store) -> tuple[State, str | None]:
    """A run has ended: release its nodes and settle its money. Returns how it ended, and its receipt in a
    line. May be repeated. Nodes of a run that is active after all are left alone."""
    from launcher import backends

    folder = runs.directory(project.runs, run.run_id)
    backend = backends.get(run.backend)
    state = backend.status(folder)
    if state.active:
        return state, None
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
            return _moved(run, state, plan, project)
    assert plan.fingerprint is not None, "inputs are pinned before a run begins"
    return new_run(plan, request, project)


def _moved(run: runs.Run, state: State, plan: Plan, project: Project) -> runs.Run:
    """The run as it goes on where the plan is, which need not be where it was: that holds nothing any more.
    Raises Refused when its place cannot be asked: what it holds there would be nobody's."""
    from launcher import backends

    folder = runs.directory(project.runs, run.run_id)
    backends.get(run.backend).down(folder)
    if run.backend != plan.profile.backend:
        # The other would take what a killed process of the one left for a state of its own.
        runs.write_text(folder / "state.json", replace(state, pid=None, pid_start=None).to_json())
    return replace(run, cluster=plan.profile.name, backend=plan.profile.backend, nodes=plan.nodes)


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
    """Whether an earlier run is the plan's: a stage of a pipeline has left its fingerprint in its journal, or
    has not begun and has nothing yet that could tell it from the plan's."""
    from launcher.lineage import sync

    if run.fingerprint or run.recipe != plan.recipe:
        return run.fingerprint == plan.fingerprint
    attempts = sync.attempts(open_store(project), run.run_id)
    seen = {events[0].get("run", {}).get("fingerprint") for events in attempts}
    return not seen or plan.fingerprint in seen


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


def open_store(project: Project) -> Store:
    from launcher.artifacts import store

    return store.open_store(project.artifacts, project.s3_endpoint)


def command_line(argv: Sequence[str]) -> str:
    """The command as it was typed, for the record of a run."""
    return shlex.join(argv)
