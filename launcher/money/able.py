"""Whether SkyPilot can run a task where it is to run: told before anything is spent."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from launcher.errors import Refused, did_you_mean
from launcher.money import places
from launcher.money.want import MARKETS, Want, split_infra, want_of

if TYPE_CHECKING:
    from launcher.plan import Plan
    from launcher.task import Task

ONE_NODE = "one node only"
NO_SPOT = "no spot market"
NO_CONTAINERS = "no container images"
NO_AUTODOWN = "nodes that idle are not taken down"
UNKNOWN = "SkyPilot 0.14.1 does not launch there"
_HINTS = {
    ONE_NODE: "--nodes 1, or another place",
    NO_SPOT: "--on-demand, or another place",
    NO_CONTAINERS: "`containers: false` in the profile: the stage then runs in a virtual environment",
    NO_AUTODOWN: "another place: here nobody would end a cluster whose launcher is gone",
}


def unable(cloud: str, want: Want) -> str | None:
    """Why SkyPilot 0.14.1 cannot run ``want`` on ``cloud`` (its ``unsupported_features_for_resources``), in a
    few words; None where it can."""
    if cloud not in places.LAUNCHABLE:
        return UNKNOWN
    if want.nodes > 1 and cloud in places.ONE_NODE:
        return ONE_NODE
    if want.container and cloud in places.NO_CONTAINERS:
        return NO_CONTAINERS
    if want.autodown and cloud in places.NO_AUTODOWN:
        return NO_AUTODOWN
    if cloud in places.NO_SPOT and "on-demand" not in want.markets:
        return NO_SPOT
    return None


def require(plan: Plan, task: Task, *, goes_on: bool = False) -> None:
    """Raise Refused where SkyPilot cannot run the plan's ``task`` in the place that its profile names; a task
    that names none goes to one that can. ``goes_on`` passes over what nobody can tell here: whether one's own
    Kubernetes has spot nodes."""
    cloud, _, _ = split_infra(plan.profile.infra)
    if plan.profile.backend != "sky" or cloud is None:
        return
    want = want_of(task)[0]
    # Also of spot first: where there is no spot, it would silently mean on-demand.
    if plan.spec.sky.spot is not False and (plan.profile.spot or plan.profile.spot_first):
        want = replace(want, markets=("spot",))
    if cloud in places.OWN:
        if want.markets == ("spot",):
            _require_spot_of_ones_own(plan, cloud, goes_on)
        return
    why = unable(cloud, want)
    if why is None:
        _require_names(plan, want)
        return
    asks = {
        ONE_NODE: f"asks for {want.nodes} nodes",
        NO_SPOT: "is to run on spot",
        NO_CONTAINERS: f"runs in the image {plan.image}",
    }.get(why, "cannot run")
    other = f"`nemo-sky plan {plan.spec.family} {plan.spec.stage}` shows where it can run"
    guess = did_you_mean(cloud, places.LAUNCHABLE | places.OWN) if why == UNKNOWN else ""
    hint = _HINTS.get(why, "the profile's `infra` names the place: CLOUD[/REGION[/ZONE]]")
    raise Refused(f"{plan.name} {asks} on {cloud}: {why}{guess}", hint=f"{hint}; {other}")


def _require_names(plan: Plan, want: Want) -> None:
    """Its catalog may know nothing of the kind there: then SkyPilot says so. But a name that it does not have
    at all is a slip."""
    from launcher.money import offers

    try:
        found, _ = offers.everywhere(replace(want, markets=MARKETS))
        wrong = None if found else offers.misnamed(want)
    except Refused:  # there is no catalog
        return
    if wrong:
        hint = "`nemo-sky plan` without it shows all places"
        raise Refused(f"{plan.name} cannot run there: {wrong}", hint=hint)


def _require_spot_of_ones_own(plan: Plan, cloud: str, goes_on: bool) -> None:
    """SkyPilot 0.14.1 looks at the labels of a Kubernetes' nodes (``get_spot_label``); the rest has none."""
    if cloud in ("slurm", "ssh"):
        raise Refused(f"{plan.name} is to run on spot on {cloud}: {NO_SPOT}", hint="--on-demand")
    if not goes_on:
        raise Refused(
            f"{plan.name} is to run on spot on {cloud}, which SkyPilot finds there on GKE and with Karpenter "
            "only",
            hint="--on-demand; where yours is one of these and has spot nodes, --ignore-estimates goes on",
        )
