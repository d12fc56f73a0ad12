"""Plans: what a launch of each stage would do, as values. Nothing is started and nothing is written here.

Request -> stages in order -> for each: runspec + composed config + profile + inputs -> Plan
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import clusters, config, cookbook, inputs, provenance, runspec, stage, task
from launcher.errors import UserError, did_you_mean
from launcher.lineage import fingerprint
from launcher.money.caps import Caps, hourly, unsaid
from launcher.project import Project

if TYPE_CHECKING:
    from launcher.artifacts.manifest import Manifest
    from launcher.artifacts.store import Store

CHECKPOINTS_KEPT = 2


@dataclass(frozen=True)
class Trial:
    """Which trial of which sweep a launch is. ``run_id`` names its run before there is one, so that a sweep
    that was killed finds it again."""

    sweep: str
    number: int
    run_id: str


@dataclass(frozen=True)
class Request:
    """What a user asked for, as typed. ``first`` and ``last`` bound the stages of ``all``.

    ``retries`` is how often a failed job is begun again, ``preemptions`` how many it may suffer (None: any
    number). ``secrets`` is a file of them. A ``draft`` is only looked at: it may lack values that a
    launch needs. ``work`` is a person's own word on the hours of work in all. ``deadline_at`` is
    the moment of the deadline of all its stages, in milliseconds since the epoch; None before it began.
    """

    family: str
    stage: str
    cluster: str = "local"
    config: str | None = None
    overrides: tuple[str, ...] = ()
    script_args: tuple[str, ...] = ()
    nodes: int | None = None
    placement: clusters.Placement = field(default_factory=clusters.Placement)
    managed: bool = False
    retries: int = 0
    preemptions: int | None = None
    secrets: Path | None = None
    caps: Caps = field(default_factory=Caps)
    work: float | None = None
    first: str | None = None
    last: str | None = None
    resume: str | None = None
    force: bool = False
    ignore_estimates: bool = False
    detach: bool = False
    command: str = "nemo-sky launch"
    draft: bool = False
    trial: Trial | None = None
    deadline_at: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether an estimate that says no is passed over."""
        return self.force or self.ignore_estimates


@dataclass(frozen=True)
class Recipes:
    """The stages under ``folders``, read once and when first asked for."""

    folders: tuple[Path, ...]

    @cached_property
    def specs(self) -> list[runspec.Runspec]:
        return runspec.discover(self.folders)[0]


@dataclass(frozen=True)
class Plan:
    """What a launch of one stage would do. ``fingerprint`` is None while an input is not pinned,
    ``recipe`` all of it but the inputs.

    ``managed`` says why it is a managed job, which SkyPilot recovers by itself; None: it is none.
    ``max_hourly`` is micro-dollars per hour of all nodes: it goes to no dearer region.
    ``source`` is the repository of another cookbook's stage.
    """

    spec: runspec.Runspec
    profile: clusters.Profile
    config_name: str
    composed: config.Composed
    values: dict[str, Any]
    env: Mapping[str, str]
    inputs: Mapping[str, inputs.Input]
    nodes: int
    recipe: str
    fingerprint: str | None
    job: dict[str, Any]
    script_args: tuple[str, ...]
    managed: str | None
    max_hourly: int | None = None
    source: cookbook.Source | None = None
    recipes: Recipes = field(default=Recipes(()), repr=False)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def image(self) -> str | None:
        return task.image_of(self.spec, self.profile)

    @property
    def output(self) -> str | None:
        return self.spec.sky.output.name if self.spec.sky.output else None

    @property
    def kind(self) -> str:
        """What runs it, and why where that is a choice."""
        if self.profile.backend == "local":
            return "on this machine"
        return f"as a managed job: {self.managed}" if self.managed else "as a job on its own cluster"


def select(request: Request, project: Project) -> list[runspec.Runspec]:
    """The stages that the request names, in the order in which they must run. ``all`` is the family's chain:
    a stage beside it, as one that only converts somebody else's weights, says ``in_all = false``.

    Raises UserError, naming the nearest, for an unknown family or stage.
    """
    if request.stage != "all":
        return [runspec.find(project.recipes, f"{request.family}/{request.stage}")]
    found, _ = runspec.discover(project.recipes)
    family = inputs.order([spec for spec in found if spec.family == request.family])
    stages = [spec for spec in family if spec.sky.in_all]
    if not stages:
        families = {spec.family for spec in found}
        raise UserError(
            f"no recipe family {request.family!r}{did_you_mean(request.family, families)}",
            hint="`nemo-sky recipes list` shows them",
        )
    names = [spec.stage for spec in stages]
    beside = [spec.stage for spec in family if not spec.sky.in_all]
    for bound in (request.first, request.last):
        if bound in beside:
            raise UserError(
                f"`all` does not run {bound}: launch it by itself", hint=f"`all` runs {', '.join(names)}"
            )
        if bound is not None and bound not in names:
            raise UserError(f"{request.family} has no stage {bound!r}{did_you_mean(bound, names)}")
    start = names.index(request.first) if request.first else 0
    end = names.index(request.last) + 1 if request.last else len(names)
    if start >= end:
        raise UserError(
            f"--from {request.first} comes after --to {request.last}: stages are {', '.join(names)}"
        )
    return stages[start:end]


def plans(request: Request, project: Project, specs: Sequence[runspec.Runspec]) -> list[Plan]:
    """The plan of every stage, inputs as they are written: all that can be checked without any service.

    Raises UserError for a wrong runspec, config, override, profile or input reference.
    """
    place = clusters.load(request.cluster, project.clusters)
    overrides = _by_stage(request, specs)
    recipes = Recipes(project.recipes)
    result = []
    for spec in specs:
        home = cookbook.root_of(spec.script_path, project)
        if home is None:
            stage.require_sound(spec, project)
        config_name = request.config or spec.config.default
        composed = stage.compose(spec, config_name, overrides[spec.name], home, draft=request.draft)
        spec = cookbook.read(spec, composed, home) if home else stage.sized(spec, composed)
        source = cookbook.source_of(composed, home) if home else None
        profile = stage.placed(spec, place, request)
        stage.require_divisible(spec, profile, request, composed)
        wanted = inputs.wanted(spec, composed.values, project.root)
        result.append(_plan(spec, profile, config_name, composed, wanted, request, project, source, recipes))
    return result


def pin(
    plan: Plan,
    request: Request,
    project: Project,
    store: Store,
    made: Mapping[str, Manifest],
    coming: Mapping[str, str] | None = None,
) -> Plan:
    """The plan with exact versions: what earlier stages of this launch made, else what the store has.

    ``coming`` maps the artifacts of a pipeline to the runs that will publish them: with such an input the
    plan has no fingerprint yet. Raises Refused, naming the nearest, when an artifact is absent.
    """
    pinned = inputs.pin(plan.inputs, store, project.tracking, made, coming or {})
    return _plan(
        plan.spec,
        plan.profile,
        plan.config_name,
        plan.composed,
        pinned,
        request,
        project,
        plan.source,
        plan.recipes,
    )


def awaited(drafts: Sequence[Plan]) -> list[list[str]]:
    """For each plan, its inputs that an earlier one of ``drafts`` will make."""
    coming: set[str] = set()
    result = []
    for plan in drafts:
        result.append([name for name, item in plan.inputs.items() if item.artifact in coming])
        if plan.output:
            coming.add(plan.output)
    return result


def to_task(
    plan: Plan, project: Project, *, job_dir: str, run_id: str | None = None, job_source: str | None = None
) -> task.Task:
    """The SkyPilot task of a plan; see :func:`launcher.task.build`."""
    retries = plan.job["limits"]["retries"]
    recovery: dict[str, Any] = {"strategy": "FAILOVER"}
    if retries:
        recovery["max_restarts_on_errors"] = retries
    script = plan.spec.script_path
    return task.build(
        plan.spec,
        plan.profile,
        script=str(script.relative_to(plan.source.root)) if plan.source else project.show(script),
        job_dir=job_dir,
        job_source=job_source,
        artifacts=plan.job["artifacts"],
        nodes=plan.nodes,
        run_id=run_id,
        env=plan.env,
        script_args=plan.script_args,
        recovery=recovery if plan.managed else None,
        source=plan.source,
    )


def _plan(
    spec: runspec.Runspec,
    profile: clusters.Profile,
    config_name: str,
    composed: config.Composed,
    wanted: Mapping[str, inputs.Input],
    request: Request,
    project: Project,
    source: cookbook.Source | None,
    recipes: Recipes,
) -> Plan:
    shape = task.shape_of(spec, profile, request.nodes)
    values, env = _job_values(composed, wanted)
    if source:  # read() has made its `run` a part of the recipe
        values, env = cookbook.script_values(values), cookbook.variables(values)
    image = task.image_of(spec, profile)
    recipe = provenance.recipe_fingerprint(
        spec,
        recipes.specs,
        values=composed.values,
        image=image,
        script_args=request.script_args,
        root=project.root,
    )
    pinned = all(item.manifest or item.path for item in wanted.values())
    whole = fingerprint.of(recipe, {name: item.digest for name, item in wanted.items()}) if pinned else None
    price = profile.price_per_hour
    job = {
        "family": spec.family,
        "stage": spec.stage,
        "launch": spec.run.launch,
        "nodes": shape.nodes,
        "artifacts": project.artifacts,
        "tracking": _tracking_of(profile, project),
        "s3_endpoint": project.s3_endpoint,
        "experiment": spec.family,
        "inputs": {name: item.job_entry() for name, item in wanted.items()},
        "output": {"name": spec.sky.output.name, "type": spec.sky.output.type} if spec.sky.output else None,
        "checkpoints": {"keep": CHECKPOINTS_KEPT} if spec.sky.checkpoint_dir else None,
        "price_per_hour": None if price is None else price * shape.nodes,
        "limits": {
            "retries": request.retries,
            "preemptions": request.preemptions,
            **({"no_retry": list(spec.sky.no_retry)} if spec.sky.no_retry else {}),
        },
        "provenance": {"image": image, "cluster": profile.name, "config": config_name},
    }
    return Plan(
        spec=spec,
        profile=profile,
        config_name=config_name,
        composed=composed,
        values=values,
        env=env,
        inputs=wanted,
        nodes=shape.nodes,
        recipe=recipe,
        fingerprint=whole,
        job=job,
        script_args=request.script_args,
        managed=stage.managed_because(spec, profile, request),
        max_hourly=hourly(request.caps, unsaid(project.money)),
        source=source,
        recipes=recipes,
    )


def _tracking_of(profile: clusters.Profile, project: Project) -> str | None:
    """The tracker as a node can reach it: not a file of this machine. Without one the journal in the store
    is replayed into it from here."""
    reachable = profile.backend != "sky" or project.tracking.startswith("http")
    return (project.tracking or None) if reachable else None


def _job_values(
    composed: config.Composed, wanted: Mapping[str, inputs.Input]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The script's config with its artifact fields filled in where they are known, and ``run.env``."""
    from launcher.artifacts.fields import resolve_art_fields

    values = resolve_art_fields(composed.values, {name: item.manifest for name, item in wanted.items()}, {})
    env = {key: str(value) for key, value in ((values.get("run") or {}).get("env") or {}).items()}
    return values, env


def _by_stage(request: Request, specs: Sequence[runspec.Runspec]) -> dict[str, list[str]]:
    """Overrides per stage. With several stages each is written ``STAGE.key=value``."""
    if request.stage != "all":
        return {specs[0].name: list(request.overrides)}
    result: dict[str, list[str]] = {spec.name: [] for spec in specs}
    for text in request.overrides:
        body = text.lstrip("+~")
        mark = text[: len(text) - len(body)]
        owner = max(
            (s for s in specs if body.startswith(f"{s.stage}.")), key=lambda s: len(s.stage), default=None
        )
        if owner is None:
            stages = [spec.stage for spec in specs]
            raise UserError(
                f"override {text!r} does not say for which stage{did_you_mean(body.split('.')[0], stages)}",
                hint=f"write it as STAGE.key=value, for example {stages[-1]}.{body}",
            )
        result[owner.name].append(mark + body.removeprefix(f"{owner.stage}."))
    return result
