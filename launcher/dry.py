"""``--dry-run``: the tasks that a launch would submit, and what it would say. Starts, writes and reserves
nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from launcher import job, pipeline, runs, secrets, strategy, task
from launcher.errors import Refused
from launcher.launch import begin_anew, open_store
from launcher.money import able, booking, orders
from launcher.plan import Plan, Request, awaited, pin, plans, select
from launcher.project import Project

if TYPE_CHECKING:
    from launcher.artifacts.store import Store

Say = Callable[[str], None]


def dry_run(request: Request, project: Project, say: Say) -> list[tuple[Plan, task.Task]]:
    """The very tasks that a launch would submit now, by the functions that it uses, inputs pinned where the
    store can tell, and what their caps would say of each, and of all together where each fits alone. What a
    launch would be refused for is said, and its task is shown all the same.

    Another than of the launch are the run's id, unless ``--resume`` names it, with the ports that follow from
    it, the launch's time under a deadline or our recovery strategy, and its entry's key. Of that strategy
    only an API server that is up knows: none is started for it.
    """
    drafts = plans(request, project, select(request, project))
    chain = pipeline.fits(drafts, request, project)
    store = open_store(project)
    result = []
    refusals: list[str] = []

    def refused(name: str, why: Refused) -> None:
        hint = f" ({why.hint})" if why.hint else ""
        refusals.append(name)
        say(f"{name}: a launch would be refused: {why.message}{hint}")

    for draft, later in zip(drafts, awaited(drafts), strict=True):
        plan = draft
        if not later:
            try:
                plan = pin(draft, request, project, store, {})
            except Refused as missing:
                refused(draft.name, missing)
        result.append((plan, _shown(plan, request, project, store, say, refused, chain)))
    if not refusals and len(drafts) > 1 and orders.is_capped(request, project):
        tasks = {plan.name: wanted for plan, wanted in result}
        try:
            beginning = [(one, tasks[one.name]) for one in begin_anew(drafts, request, project, store)]
            booking.foresee(beginning, request, project, store, ask=False)
        except Refused as short:
            refused(f"{request.family}/all", short)
    return result


def _shown(
    plan: Plan,
    request: Request,
    project: Project,
    store: Store,
    say: Say,
    refused: Callable[[str, Refused], None],
    chain: bool,
) -> task.Task:
    """The task of one stage; ``chain``: as a part of one managed job, which has no cap and FAILOVER."""
    run_id = request.resume or runs.new_id(plan.spec.family, plan.spec.stage)
    wanted = job.task_of(plan, project, run_id)
    ours = not chain and strategy.is_ours(plan, lambda line: say(f"{plan.name}: {line.strip()}"), asks=True)
    hidden: Iterable[str] = plan.profile.secrets
    booked = None
    try:
        hidden = secrets.of_plan(plan, request.secrets)
    except Refused as absent:
        refused(plan.name, absent)
    try:
        told = booking.foretell(plan, run_id, request, project, store, wanted, ours)
        booked = told.booking
        able.require(plan, wanted, goes_on=request.goes_on)
        booking.check(plan, request, project, wanted)
        if told.refusal:
            raise told.refusal
        for line in told.lines:
            say(f"{plan.name}: {line}")
    except Refused as short:
        refused(plan.name, short)
    return job.as_submitted(plan, project, request, run_id, store, hidden, booked, ours)
