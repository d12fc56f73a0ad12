"""The order of a launch at the gate: its entry, its caps and what is expected of it, also in words."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from launcher.artifacts import checkpoints
from launcher.money import caps, gate
from launcher.money.account import MICROS, About, Account, Entry, micros, money
from launcher.money.amounts import format_duration
from launcher.money.lease import Lease
from launcher.money.ledger import now_ms

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.plan import Plan, Request
    from launcher.project import Project
    from launcher.task import Task

GRACE_S = 120.0  # what a trainer gets to save in, unless NEMO_SKY_GRACE_S says otherwise
COMMIT_S = 60.0  # on top of it, for what it saved to be committed
# Set-up and teardown, in seconds, by backend. On clouds: to provision a node and pull an image of 20 GB, and
# for SkyPilot to see that a job has ended and terminate its nodes.
SETUP_S = {"local": 60.0, "fake": 60.0, "sky": 1200.0}
TEARDOWN_S = {"local": 0.0, "fake": 0.0, "sky": 300.0}


def is_capped(request: Request, project: Project) -> bool:
    """Whether the launch, or the project for it, says any cap."""
    return request.caps != caps.Caps() or caps.unsaid(project.money) != caps.Caps()


def lease_of(plan: Plan, project: Project, task: Task, ours: bool) -> Lease:
    """The durations of the run. Of a managed job that SkyPilot's FAILOVER recovers each attempt leases a
    set-up more, of the next one, and its end should that be all there is left for: nobody asks the ledger
    before its nodes come."""
    settings, backend = project.money, plan.profile.backend
    grace = float(task["envs"].get("NEMO_SKY_GRACE_S") or GRACE_S)
    setup = SETUP_S[backend] if settings.setup is None else settings.setup
    teardown = TEARDOWN_S[backend] if settings.teardown is None else settings.teardown
    asked = ours or backend != "sky" or not plan.managed
    recovery = 0.0 if asked else setup + teardown
    seconds = (setup, settings.check_every, grace + min(grace, COMMIT_S), teardown, recovery)
    return Lease(*(round(1000 * item) for item in seconds))


def prices_of(plan: Plan, task: Task, capped: bool) -> tuple[int | None, int | None]:
    """Micro-dollars per hour for all nodes, and what the same place costs on-demand; None when unknown.
    Under a cap: of the dearest place to which SkyPilot may take the task, so that the cap holds wherever that
    is."""
    from launcher.money import prices

    price, on_demand = prices.prices_of(plan.profile, task, highest=capped)
    return micros(price), micros(on_demand)


def of_launch(
    plan: Plan, request: Request, project: Project, task: Task, run_id: str, capped: bool, lease: Lease
) -> gate.Order:
    from launcher import provenance

    now, profile = now_ms(), plan.profile
    cloud, region, zone = [*(profile.infra or profile.backend).split("/"), None, None][:3]
    spot = plan.spec.sky.spot is not False and profile.spot
    first = plan.spec.sky.spot is not False and profile.spot_first and not spot
    price, on_demand = prices_of(plan, task, capped)
    entry = Entry(
        f"{run_id}/{uuid.uuid4().hex[:8]}",
        run_id,
        price,
        now,
        lease.reserved(now) if capped else lease.first(now),
        nodes=plan.nodes,
        market="spot" if spot else "spot-first" if first else "on-demand",
        cloud=cloud,
        region=region,
        zone=zone,
        # Of spot first, nobody knows here which of the two it will be.
        on_demand=None if first else on_demand,
    )
    about = About(plan.spec.family, plan.spec.stage, provenance.user_name(), profile.name)
    other = None
    if capped and profile.backend == "sky" and not (spot or first):
        on_spot = {**task, "resources": {**task["resources"], "use_spot": True}}
        other = prices_of(plan, on_spot, capped)[0] if profile.price_per_hour is None else None
    return gate.Order(
        entry,
        about,
        request.caps,
        caps.unsaid(project.money),
        spot_price=other,
        least_price=_least(plan, task, request, project, price),
        recovery=lease.recovery if capped else 0,
        tail=lease.save + lease.teardown if capped else 0,
        # Whether the plugin is there is asked only of a launch on spot: this one says what would do without.
        spot_recovery=lease.setup + lease.teardown - lease.recovery,
        ends=request.deadline_at,
    )


def _least(plan: Plan, task: Task, request: Request, project: Project, price: int | None) -> int | None:
    """The least that ``--max-hourly`` would have to be, where it leaves no place at ``price``."""
    limit = caps.hourly(request.caps, caps.unsaid(project.money))
    if limit is None or price is None or price <= limit:
        return None
    from launcher.money import narrow

    return narrow.least(plan.profile, task)


def expecting(
    plan: Plan,
    run_id: str,
    experiment: str | None,
    request: Request,
    project: Project,
    task: Task,
    lease: Lease,
    before: Account,
    store: Store,
    begun: bool,
) -> gate.Order:
    """The order of a launch whose account is ``before``, with what is left of its work, where that counts,
    after the newest checkpoint; a run that has not ``begun`` cannot have one."""
    capped = is_capped(request, project) or bool(before.caps(run_id))
    order = of_launch(plan, request, project, task, run_id, capped, lease)
    order = replace(order, caps=replace(order.caps, experiment=experiment))
    left = gate.with_budgets(before, order).left(run_id)
    if (left is None and order.deadline is None) or request.goes_on:
        return order
    newest = checkpoints.newest(store, run_id) if begun else None
    step = newest.step if newest else None
    seen = expected(plan, request, store, task, order, left, step)
    return replace(order, expected=seen)


def expected(
    plan: Plan,
    request: Request,
    store: Store,
    task: Task,
    order: gate.Order,
    left: int | None,
    step: int | None,
) -> gate.Expected:
    """What is left of the plan's work after the checkpoint ``step``, in the time that the order has, with
    ``left`` micro-dollars for it and for what no attempt can work for."""
    from launcher.money import expect, spots  # and NumPy

    hours = None if order.deadline is None else max(order.deadline, 0.0) / 3600
    limits = expect.Limits(hours, None if left is None else max(left - order.kept, 0) / MICROS)
    work, trouble = expect.work_left(plan, store, request.work, step)
    seen = None
    if plan.profile.backend == "sky" and not trouble:
        seen, trouble = spots.learn(store, time.time())
    return replace(expect.expected(plan.profile, task, work, limits, seen), trouble=tuple(trouble))


def begun_once(plan: Plan, request: Request) -> list[str]:
    """That a failed job is not begun again under a cap where only SkyPilot counts the failures."""
    if not request.retries or not plan.managed:
        return []
    what = (
        "SkyPilot's FAILOVER begins no failed job again under a budget or a deadline, for it asks for neither"
    )
    return [f"--retries {request.retries}: {what}; our strategy does, on spot (docs/recovery.md)"]


def foreseen(order: gate.Order) -> list[str]:
    """What a person should know of how the caps will do."""
    if order.expected is None:
        return []
    best, trouble = order.expected.best, order.expected.trouble
    if best is None:
        return [*trouble, f"expected: unknown ({order.expected.unknown}); the caps hold while it runs"]
    takes = format_duration(best.hours * 3600)
    chance = "" if best.chance is None else f", within the caps with a chance of {best.chance:.0%}"
    said = f"expected: {money(best.cost)} in {takes} at {best.where}{chance} ({best.source})"
    return [*trouble, said]


def said(before: Account, held: Account, run_id: str) -> list[str]:
    """What a person should know of the caps: what is left, and whose cap was changed."""
    lines = []
    if held.budget != before.budget and before.budget is not None and held.budget is not None:
        last = before.budgets[-1]
        when = datetime.fromtimestamp(last.at / 1000).isoformat(" ", "minutes")
        lines.append(
            f"the budget of experiment {held.experiment} is now {money(held.budget)}; it was "
            f"{money(last.amount)}, given by {last.by} on {when}"
        )
    for whose, cap, over in held.caps(run_id):
        lines.append(
            f"budget of {whose}: {money(cap)}, {money(cap - held.committed(over))} of it not reserved"
        )
    return lines
