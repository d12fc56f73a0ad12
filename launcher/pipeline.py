"""Several stages as one managed job of SkyPilot, which begins each when the one before has succeeded.

No launcher has to stay for that. A stage that waits for an artifact names the run that will publish it; its
agent resolves it. A failed pipeline is launched again by the same command: what is made is skipped, what is
unfinished is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from launcher import job, runs, secrets
from launcher.errors import Refused
from launcher.plan import Plan, Request, pin

if TYPE_CHECKING:
    from launcher.artifacts.manifest import Manifest
    from launcher.artifacts.store import Store
    from launcher.launch import Outcome
    from launcher.project import Project

Say = Callable[[str], None]


def fits(drafts: Sequence[Plan], request: Request, project: Project) -> bool:
    """Whether the stages can be one: all managed by SkyPilot, and no cap, whose gate each stage must pass."""
    from launcher.money import orders

    managed = all(plan.profile.backend == "sky" and plan.managed for plan in drafts)
    return len(drafts) > 1 and managed and not orders.is_capped(request, project)


def launch(
    drafts: Sequence[Plan], request: Request, project: Project, store: Store, say: Say, log: Say
) -> list[Outcome]:
    """Skip what is made, submit the rest at once, and follow it unless detached; see ``launcher.launch``."""
    from launcher import launch as flow
    from launcher.backends import sky

    made: dict[str, Manifest] = {}
    coming: dict[str, str] = {}
    outcomes: list[Outcome] = []
    stages: list[tuple[Plan, runs.Run]] = []
    with runs.exclusive(project.runs):
        for draft in drafts:
            plan = pin(draft, request, project, store, made, coming)
            done = None if request.force else flow.find_output(store, plan)
            if done:
                made[done.name] = done
                say(f"{plan.name}: already made: {done.uri} (--force makes it again)")
                outcomes.append(flow.Outcome(plan, "skipped", str(done.producer.get("run_id")), 0.0, done))
                continue
            if plan.fingerprint is None:
                run = flow.new_run(plan, request, project)
            else:
                run = flow.begin_or_resume(plan, request, project, say)
                uncapped(run, store)
            stages.append((plan, run))
            if plan.output:
                coming[plan.output] = run.run_id
        if stages:
            name = runs.new_id(request.family, "all")
            submitted = []
            for plan, run in stages:
                runs.save(project.runs, run)
                hidden = secrets.of_plan(plan, request.secrets)
                task = job.write(plan, run, project, request, store, hidden)
                submitted.append((runs.directory(project.runs, run.run_id), task, hidden))
                say(f"{plan.name}: run {run.run_id} on {plan.profile.name}")
            say(f"as the managed job {name} of {len(stages)} tasks: {stages[0][0].managed}")
            sky.submit_pipeline(name, submitted)
    for outcome in outcomes:
        flow.see_off(outcome.run_id, project, store, say)
    for number, (plan, run) in enumerate(stages, 1):
        if request.detach:
            outcomes.append(flow.Outcome(plan, "submitted", run.run_id, 0.0, None))
            continue
        say(f"[{number}/{len(stages)}] {plan.name}")
        outcomes.append(flow.follow(plan, run, project, store, say, log))
    if request.detach and stages:
        say(f"detached: {flow.come_back(stages[0][1].run_id)}")
    return outcomes


def uncapped(run: runs.Run, store: Store) -> None:
    """Raise Refused for a run under a cap: a pipeline has no gate for a stage to pass."""
    from launcher.money.ledger import account_name, open_ledger

    held = open_ledger(store).read(account_name(run.run_id, run.experiment))
    if held.caps(run.run_id):
        of = f"of the experiment {run.experiment}" if run.experiment else "with a budget"
        flag = f" --experiment {run.experiment}" if run.experiment else ""
        raise Refused(
            f"{run.run_id} is unfinished and {of}, which one managed job of several stages cannot keep to",
            hint=f"finish it first: `nemo-sky launch {run.family} {run.stage}{flag} `; --force begins anew",
        )
