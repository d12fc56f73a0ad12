"""What must be true before money is spent: asked by every launch, and by itself with `nemo-sky doctor`.

Each check says what it found and, where it failed, how to mend it. What cannot be told from here is neither a
success nor a failure.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import clusters, fit, image, inputs, secrets, synced, task
from launcher.errors import Refused, UserError
from launcher.money.want import MARKETS, Market, split_infra, want_of
from launcher.quotas import ask, room, tool

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.plan import Plan
    from launcher.project import Project

# S3 refuses a request whose clock is 15 minutes off (RequestTimeTooSkewed); journals of several nodes are
# ordered by their clocks long before that.
SKEW_FAILS_S = 300.0
MEMORY_MARGIN = 1.2  # the estimate is good to some 20 %
# Where SkyPilot 0.14.1 asks for no disk: `disk_size` is in none of these templates but Slurm's, and nothing
# of provision/slurm reads it. A pod asks for it as ephemeral storage, unless it is SkyPilot's default, which
# counts as not said (resources.py).
NO_DISK_SIZE = frozenset(
    ("slurm", "lambda", "fluidstack", "hyperbolic", "ibm", "mithril", "shadeform", "vsphere")
)
PODS = frozenset(("kubernetes", "k8s", "ssh"))
UNSAID_DISK_GB = 256


@dataclass(frozen=True)
class Finding:
    """One check. ``ok`` None: it could not be told. ``forceable``: an estimate; --ignore-estimates
    goes on in spite of it."""

    check: str
    ok: bool | None
    says: str
    hint: str | None = None
    forceable: bool = False


def require(findings: Iterable[Finding], goes_on: bool) -> None:
    """Raise Refused for the first failure; with ``goes_on``, for the first that is more than an estimate."""
    for found in findings:
        if found.ok is False and not (goes_on and found.forceable):
            hint = found.hint
            if found.forceable:
                hint = (
                    f"{hint}, or go on with --ignore-estimates" if hint else "go on with --ignore-estimates"
                )
            raise Refused(f"{found.check}: {found.says}", hint=hint)


def of_project(project: Project, store: Store) -> Iterator[Finding]:
    """The store, the clock, the tracker."""
    from launcher.lineage import mlflow_view

    yield _tried("artifact store", f"{store.url} can be written", store.check)
    yield clock(store)
    yield _tried("tracker", f"{project.tracking} answers", lambda: mlflow_view.check(project.tracking))


def clock(store: Store, now: float | None = None) -> Finding:
    """This machine's clock beside the store's; ``now`` is in epoch seconds."""
    from launcher.artifacts.s3_store import S3Store

    if not isinstance(store, S3Store):
        return Finding("clock", True, "the store is a folder of this machine")
    try:
        date = store.date()
    except UserError as error:
        return Finding("clock", None, error.message)
    if date is None:
        return Finding("clock", None, "the store does not say what time it is")
    skew = (now or time.time()) - parsedate_to_datetime(date).timestamp()
    says = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {store.url}"
    if abs(skew) > SKEW_FAILS_S:
        return Finding("clock", False, says, "set it: `timedatectl set-ntp true`, or your host's own way")
    return Finding("clock", True, says)


def of_place(profile: clusters.Profile) -> Iterator[Finding]:
    """SkyPilot, and its credentials for the place."""
    from launcher.backends import sky_calls

    if profile.backend != "sky":
        return
    cloud = (profile.infra or "*").split("/")[0]
    wanted = None if cloud == "*" else cloud
    try:
        enabled = sky_calls.enabled_clouds(wanted)
    except Refused as error:
        yield Finding("SkyPilot", False, error.message.removeprefix("SkyPilot: "), error.hint)
        return
    yield Finding("SkyPilot", True, "its API server answers")
    if wanted in enabled or (wanted is None and enabled):
        yield Finding("credentials", True, f"for {', '.join(enabled)}")
        return
    yield Finding(
        "credentials",
        False,
        f"SkyPilot finds none that work for {wanted or 'any cloud'}",
        f"`sky check {wanted or ''}".rstrip() + "` says what is missing and how to get it",
    )


def controller(plans: Iterable[Plan]) -> Iterator[Finding]:
    """Whether SkyPilot can watch over managed jobs on Slurm. Its controller cannot be a job there
    (``HOST_CONTROLLERS`` in ``clouds/slurm.py`` of 0.14.1) and is not given ``~/.slurm/config`` on another
    cloud: so it must be in the API server, which is to run for this to be told."""
    from launcher.backends import sky_calls, sky_server

    watched = [
        plan.name
        for plan in plans
        if plan.managed and plan.profile.backend == "sky" and split_infra(plan.profile.infra)[0] == "slurm"
    ]
    if not watched:
        return
    check = "jobs controller"
    restart = "`sky api stop` and `sky api start`"
    try:
        inside = sky_server.runs_controllers()
        is_set = inside is False and sky_calls.is_consolidated()
    except Refused as error:
        yield Finding(check, None, error.message, error.hint)
        return
    if inside:
        yield Finding(check, True, "it runs in the API server")
    elif inside is None:
        says = "whether it runs in the API server, as Slurm needs it, is not known here"
        yield Finding(check, None, says, "who runs the server sets jobs.controller.consolidation_mode: true")
    elif is_set:
        says = "the API server was started before jobs.controller.consolidation_mode was set"
        yield Finding(check, False, says, f"{restart}: it looks at that when it starts")
    else:
        yield Finding(
            check,
            False,
            f"SkyPilot cannot run it on Slurm, and so not watch over {watched[0]}",
            "set `jobs: {controller: {consolidation_mode: true}}` in ~/.sky/config.yaml, then "
            f"{restart}; or launch without --managed and --retries",
        )


def of_inputs(plan: Plan, awaited: Collection[str], project: Project, store: Store) -> Iterator[Finding]:
    """Whether the stage's artifacts are there, but for those that an earlier stage of a launch will make; of
    folders that the nodes do not see speaks ``of_plan``."""
    for name, item in plan.inputs.items():
        check = f"{name} for {plan.name}"
        if item.path and not _sees_folders(plan):
            continue
        if name in awaited:
            yield Finding(check, True, f"{item.ref} is made before it")
            continue
        try:
            found = inputs.pin({name: item}, store, project.tracking, {})[name]
        except UserError as error:
            yield Finding(check, False, error.message, error.hint)
        else:
            yield Finding(check, True, found.manifest.uri if found.manifest else str(found.path))


def of_plan(plan: Plan, project: Project, secrets_file: Path | None = None) -> Iterator[Finding]:
    """What one stage needs of its place: a store and inputs that it can reach, secrets, image, memory of its
    GPUs, disk for its checkpoints.

    That the parallelism divides the GPUs is checked where the plan is made.
    """
    if plan.profile.backend != "sky":
        return
    yield shared_store(plan, project)
    yield from folders(plan)
    hidden: dict[str, str] = {}
    yield _tried(
        "secrets",
        "all are set",
        lambda: hidden.update(secrets.of(plan.profile, plan.image, secrets_file)),
    )
    if secrets_file and secrets_file.expanduser().is_file():
        yield stays(secrets_file, [project.root, *([plan.source.root] if plan.source else [])])
    container = task.container_of(plan.spec, plan.profile)
    if container and plan.profile.containers:
        yield image_of(container, hidden)
    yield from memory(plan)
    yield from disk(plan)


def shared_store(plan: Plan, project: Project) -> Finding:
    """Whether the nodes reach the store that this machine reads."""
    if project.artifacts.startswith("s3://") or _sees_folders(plan):
        return Finding("shared store", True, project.artifacts)
    return Finding(
        "shared store",
        False,
        f"{plan.profile.name} cannot reach {project.artifacts}, a folder of this machine",
        "set artifacts: s3://BUCKET/PREFIX in nemo-sky.yaml or NEMO_SKY_ARTIFACTS; a cluster that sees the "
        "same folders says shared_filesystem: true in its profile",
    )


def folders(plan: Plan) -> Iterator[Finding]:
    """The inputs that are folders of this machine where the nodes do not see them: nothing copies them, and
    the agent would end on nodes that are paid for."""
    if _sees_folders(plan):
        return
    for name, item in plan.inputs.items():
        if item.path:
            yield Finding(
                f"{name} for {plan.name}",
                False,
                f"{plan.profile.name} cannot reach {item.path}, which is of this machine",
                f"`nemo-sky artifacts import {shlex.quote(item.path)} --name NAME --type TYPE` puts it into "
                f"the store, and run.{name}=art://NAME takes it from there; a cluster that sees the same "
                "folders says shared_filesystem: true in its profile",
            )


def _sees_folders(plan: Plan) -> bool:
    return plan.profile.backend != "sky" or plan.profile.shared_filesystem


def stays(file: Path, roots: Iterable[Path]) -> Finding:
    """Whether a file of secrets is left out of the folders that SkyPilot copies to the nodes."""
    try:
        root = next((root for root in roots if synced.takes(root, file)), None)
    except Refused as error:
        return Finding("secrets file", None, f"it may be copied to the nodes: {error.message}", error.hint)
    if root is None:
        return Finding("secrets file", True, f"{file} is not copied to the nodes")
    line = f"/{synced.name_in(root, file)}"
    if (root / synced.IGNORE).exists():
        ignored = f"put the line {line} into {root / synced.IGNORE}"
    else:
        ignored = f"make {root / synced.IGNORE} of {line} and what .gitignore names, which it stands in for"
    return Finding(
        "secrets file",
        False,
        f"{file} would be copied to every node, with {root}",
        f"keep it outside of that folder, or {ignored}",
    )


def image_of(name: str, hidden: Mapping[str, str]) -> Finding:
    """Whether the registry has the image and gives it to the job, which logs in with its secrets."""
    login = secrets.login_for(image.parse(name).registry, hidden)
    try:
        found = image.exists(name, login)
    except Refused as error:
        return Finding("image", None, error.message)
    if found:
        return Finding("image", True, f"{name} is there")
    # A private image looks absent to whoever may not have it; a node may be logged in by other means.
    return Finding(
        "image",
        False,
        f"{name} is not there, or not for {'this key' if login else 'who is not logged in'}",
        "check its tag and, for a private one, that its registry's key is among the secrets",
        forceable=True,
    )


def quotas(tasks: Iterable[task.Task]) -> Iterator[Finding]:
    """Whether the account may run so many instances for each of ``tasks``, where the cloud tells: AWS, Azure
    and GCP do.

    One region with room is enough: SkyPilot passes over those that refuse. A failure is only what holds for
    every region that a task may go to.
    """
    once = tool.remembering()
    for wants in dict.fromkeys(tuple(want_of(submitted)) for submitted in tasks):
        try:
            told = ask.told(wants, once)
        except UserError as error:
            yield Finding("quota", None, error.message, error.hint)
            continue
        for market in MARKETS:
            rooms = [found for found in told.rooms if found.market == market]
            untold = [found for found in told.untold if found.market in (None, market)]
            if rooms:
                yield _quota(rooms, untold, f"{wants[0].nodes} x", market)
            elif untold and any(market in want.markets for want in wants):
                yield Finding("quota", None, _and_more(untold), untold[0].hint)


def _quota(rooms: Sequence[room.Room], untold: Sequence[room.Untold], times: str, market: Market) -> Finding:
    """The best of the regions that tell."""
    best = room.best(rooms)
    regions = ", ".join(sorted({found.region for found in rooms if found.enough}))
    says = f"{best.free} {best.unit} of {best.needed} for {times} {best.instance}, {market}"
    says += f", in {regions or f'{best.region}, the most of any region'}"
    if best.used:
        says += f"; {best.used} of {best.limit} are in use in {best.region}"
    if not best.enough and untold:
        return Finding("quota", None, f"{says}; {_and_more(untold)}", untold[0].hint)
    hint = f"{best.more}, or take fewer nodes or the other market"
    return Finding("quota", best.enough, says, hint, forceable=True)


def _and_more(untold: Sequence[room.Untold]) -> str:
    more = f" (and {len(untold) - 1} more)" if len(untold) > 1 else ""
    return f"{untold[0].why}{more}"


def memory(plan: Plan) -> Iterator[Finding]:
    """The estimated memory of each GPU beside what the smallest accelerator asked for has."""
    shape = task.shape_of(plan.spec, plan.profile, plan.nodes)
    if not shape.gpus_per_node:
        return
    needed = fit.memory_gb(plan.values, shape.nodes * shape.gpus_per_node)
    types = plan.profile.accelerator or plan.spec.sky.accelerator
    known = {kind: fit.GPU_MEMORY_GB[kind] for kind in types if kind in fit.GPU_MEMORY_GB}
    if needed is None or not known:
        what = "how much the model needs" if needed is None else f"how much {' or '.join(types)} has"
        yield Finding("GPU memory", None, f"unknown: {what}")
        return
    kind = min(known, key=lambda name: known[name])
    says = f"about {needed:.0f} GB on each {kind} of {known[kind]} GB"
    yield Finding(
        "GPU memory",
        needed <= known[kind] * MEMORY_MARGIN,
        says,
        "more GPUs, a higher degree of parallelism, or a smaller micro batch",
        forceable=True,
    )


def disk(plan: Plan) -> Iterator[Finding]:
    """Room for the checkpoints that are kept, the one being written, and the one being uploaded; unknown
    where SkyPilot does not ask for what the task says."""
    size = fit.checkpoint_gb(plan.values)
    room = max(plan.profile.disk_size or 0, plan.spec.sky.disk_gb or 0)
    if size is None or not plan.spec.sky.checkpoint_dir:
        return
    keep = fit.get(plan.values, "checkpoint.most_recent_k")
    count = (keep if isinstance(keep, int) and keep > 0 else 1) + 1
    wanted = f"{count} checkpoints of {size:.0f} GB on {plan.nodes} nodes"
    cloud = split_infra(plan.profile.infra)[0]
    if cloud in NO_DISK_SIZE or (cloud in PODS and room in (0, UNSAID_DISK_GB)):
        hint = "see that the nodes have it where ~/.nemo-sky/work is"
        if cloud in PODS:
            hint += f", or say in the profile a disk_size that is not SkyPilot's default of {UNSAID_DISK_GB}"
        yield Finding("disk", None, f"{wanted}; SkyPilot asks for no disk on {cloud}", hint)
    elif room:
        yield Finding(
            "disk",
            size * count / plan.nodes <= room,
            f"{wanted} beside {room} GB on each",
            "raise disk_size in the profile",
            forceable=True,
        )


def _tried(check: str, good: str, call: Callable[[], object]) -> Finding:
    """What a call that raises UserError found."""
    try:
        call()
    except UserError as error:
        return Finding(check, False, error.message, error.hint)
    return Finding(check, True, good)
