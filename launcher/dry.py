"""A dry run: what a launch would submit, and what it would say of its caps. Starts and reserves nothing."""

from __future__ import annotations

from collections.abc import Callable

from launcher import job, runs, task
from launcher import launch as flow
from launcher.errors import Refused
from launcher.money import able, booking
from launcher.plan import Plan, Request, awaited, pin, plans, select
from launcher.project import Project


def dry_run(request: Request, project: Project, say: Callable[[str], None]) -> list[tuple[Plan, task.Task]]:
    """The very tasks that a launch would submit, inputs pinned where the store can tell, and what the caps
    would say of each, and of all together where each fits alone."""
    drafts = plans(request, project, select(request, project))
    result: list[tuple[Plan, task.Task]] = []
    fits = True

    def refused(name: str, error: Refused) -> None:
        hint = f" ({error.hint})" if error.hint else ""
        say(f"{name}: a launch would be refused: {error.message}{hint}")

    for draft, later in zip(drafts, awaited(drafts), strict=True):
        plan = draft
        try:
            if not later:
                plan = pin(draft, request, project, flow.open_store(project), {})
        except Refused as missing:
            say(f"{draft.name}: a launch would be refused: {missing.message}")
            fits = False
        run_id = runs.new_id(plan.spec.family, plan.spec.stage)
        wanted = job.task_of(plan, project, run_id)
        try:
            able.require(plan, wanted, goes_on=request.goes_on)
            booking.check(plan, request, project, wanted)
            for line in booking.foretell(plan, request, project, flow.open_store(project), wanted):
                say(f"{draft.name}: {line}")
        except Refused as short:
            refused(draft.name, short)
            fits = False
        result.append((plan, wanted))
    if fits and len(drafts) > 1 and booking.is_capped(request, project):
        tasks = {plan.name: wanted for plan, wanted in result}
        store = flow.open_store(project)
        try:
            beginning = [(one, tasks[one.name]) for one in flow.begin_anew(drafts, request, project, store)]
            booking.foresee(beginning, request, project, store, ask=False)
        except Refused as short:
            refused(f"{request.family}/all", short)
    return result
