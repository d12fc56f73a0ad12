"""Which recovery strategy a managed job gets: ours where the API server has the plugin, else SkyPilot's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from launcher.errors import Refused
from launcher.skyplugin.names import KEY, NAME, STRATEGY

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.money.booking import Booking
    from launcher.plan import Plan, Request

LOST = (
    "market and zone do not follow prices, deadline and budget, and a run on spot-first does not "
    "go back from on-demand to spot (docs/recovery.md)"
)


def is_ours(plan: Plan, say: Callable[[str], None], *, asks: bool = False) -> bool:
    """Whether our strategy is to recover the run: it is on spot, and the API server has the plugin. Says
    what is lost where it has not. Who only ``asks`` has started no server: one that does not answer may have
    the plugin once it is up."""
    spot = plan.profile.spot or plan.profile.spot_first
    if plan.profile.backend != "sky" or not plan.managed or not spot or plan.spec.sky.spot is False:
        return False
    from launcher.backends import sky_calls

    try:
        found = sky_calls.plugins()
    except Refused as error:
        if asks:
            say("  recovered by SkyPilot's FAILOVER, as shown, or by our strategy: its API server is not up")
            return False
        found, why = {}, error.message
    else:
        why = "the API server has no nemo-sky plugin"
    if NAME in found:
        return True
    if other := next((name for name in found if name.startswith(NAME)), None):
        why = f"the API server's plugin is {other}"
    say(f"  recovered by SkyPilot's FAILOVER ({why}): {LOST}")
    say("  `nemo-sky plugin install` adds our strategy to an API server on this machine")
    return False


def job_recovery(
    task: Mapping[str, Any], plan: Plan, request: Request, store: Store, booked: Booking
) -> dict[str, Any]:
    """SkyPilot's ``job_recovery`` for our strategy; see ``launcher.money.recovery.Terms``."""
    from launcher.money import estimate, expect

    work = None
    if booked.deadline is not None:
        asked, _ = expect.work_left(plan, store, request.work, None)
        high = estimate.estimate(asked, *_gpus(task), plan.nodes).high
        work = None if high is None else high * 3600
    price = plan.profile.price_per_hour
    terms = {
        "run": booked.entry.run,
        "artifacts": plan.job["artifacts"],
        "s3_endpoint": plan.job["s3_endpoint"],
        "began": booked.entry.launched / 1000,
        "lease": asdict(booked.lease),
        "experiment": booked.experiment,
        "capped": booked.capped,
        "price": None if price is None else price * plan.nodes,
        "deadline": None if booked.deadline is None else booked.deadline / 1000,
        "work": work,
        "reservation": booked.entry.key,
        "no_retry": list(plan.spec.sky.no_retry),
    }
    kept = {key: value for key, value in task["resources"]["job_recovery"].items() if key != "strategy"}
    return {"strategy": STRATEGY, **kept, KEY: terms}


def begun_once(task: Mapping[str, Any]) -> dict[str, Any]:
    """The task without ``max_restarts_on_errors``: SkyPilot's FAILOVER goes by the count alone, and would
    begin a run that has reached its budget or deadline so often again, each time with a set-up to pay."""
    resources = dict(task.get("resources") or {})
    if recovery := resources.get("job_recovery"):
        kept = {key: value for key, value in recovery.items() if key != "max_restarts_on_errors"}
        resources["job_recovery"] = kept
    return {**task, "resources": resources}


def _gpus(task: Mapping[str, Any]) -> tuple[str | None, int]:
    from launcher.money.want import want_of

    want = want_of(task)[0]
    return (want.gpus[0] if want.count else None), want.count
