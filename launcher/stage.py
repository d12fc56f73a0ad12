"""A stage as a launch wants it: its config composed, its size, and its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import clusters, config, cookbook, fit, runspec, task
from launcher.errors import UserError, did_you_mean
from launcher.project import Project

if TYPE_CHECKING:
    from launcher.plan import Request

# What a config may say of the nodes it was made for, in place of the recipe.
SIZE_KEYS = ("run.nodes", "run.gpus_per_node", "run.accelerator")


def require_sound(spec: runspec.Runspec, project: Project) -> None:
    """Raises UserError for what a strict reader finds in the script. Other cookbooks have no strict reader:
    `nemo-sky check` tells of theirs."""
    if problems := runspec.check(spec.script_path):
        first = problems[0]
        more = f" (and {len(problems) - 1} more: `nemo-sky check`)" if len(problems) > 1 else ""
        raise UserError(f"{first.message}{more}", where=f"{project.show(first.file)}:{first.line}")


def compose(
    spec: runspec.Runspec,
    name: str,
    overrides: Sequence[str],
    home: Path | None = None,
    *,
    draft: bool = False,
) -> config.Composed:
    """A stage's config; ``${art:INPUT,FIELD}`` of its declared inputs stays as it is written. ``home`` is the
    repository of another cookbook's stage, which declares its inputs in the config.

    Raises UserError, with file:line, for what neither the config nor the recipe knows.
    """

    def keep(input_name: str, field: str) -> str:
        if home is None and input_name not in spec.sky.inputs:
            guess = did_you_mean(input_name, spec.sky.inputs)
            raise UserError(f"{spec.name} has no input {input_name!r}{guess}")
        return f"${{art:{input_name},{field}}}"

    known = [*spec.sky.config_keys, "run.env.*", *SIZE_KEYS, *(f"run.{name}" for name in spec.sky.inputs)]
    return config.compose(
        spec.config_dir,
        name,
        overrides,
        known=[] if home else known,
        resolver=keep,
        stage_dir=spec.script_path.parent,
        preset=cookbook.PRESET if home else None,
        node_env=cookbook.NODE_ENV if home else None,
        draft=draft,
    )


def sized(spec: runspec.Runspec, composed: config.Composed) -> runspec.Runspec:
    """The recipe with the size that the config was made for: ``run.nodes``, ``run.gpus_per_node`` and
    ``run.accelerator``, where it has them. A profile and ``--nodes`` still win.

    Raises UserError, with the place, for a value that is no size.
    """
    section = composed.values.get("run") or {}
    resources, sky = spec.resources, spec.sky
    for key, least in (("nodes", 1), ("gpus_per_node", 0)):
        value = section.get(key)
        if value is not None:
            if type(value) is not int or value < least:
                raise UserError(
                    f"run.{key} must be a whole number from {least}, not {value!r}",
                    where=composed.where(f"run.{key}"),
                )
            resources = replace(resources, **{key: value})
    if (kinds := section.get("accelerator")) is not None:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise UserError(
                "run.accelerator must be a GPU type or a list of them",
                where=composed.where("run.accelerator"),
            )
        sky = replace(sky, accelerator=tuple(kinds))
    return replace(spec, resources=resources, sky=sky)


def placed(spec: runspec.Runspec, profile: clusters.Profile, request: Request) -> clusters.Profile:
    """The profile as the launch wants it for this stage. ``--gpus`` of ``all`` is for stages that use some.

    Raises UserError for a wish that the place or the recipe forbids.
    """
    wanted = request.placement
    if request.stage == "all" and spec.resources.gpus_per_node == 0:
        wanted = replace(wanted, gpus=None)
    if profile.backend == "local":  # SkyPilot, which begins a job again, has no part in it
        recovered = {
            "managed": request.managed,
            "retries": request.retries > 0,
            "preemptions": request.preemptions is not None,
        }
        if flags := [f"--{name}" for name, given in recovered.items() if given]:
            raise UserError(f"{flags[0]} means nothing on this machine", hint="name a cloud: --cloud aws")
    if wanted.market in ("spot", "spot-first") and spec.sky.spot is False and request.stage != "all":
        raise UserError(
            f"--{wanted.market}: {spec.name} must not run on spot, its recipe says",
            where=str(spec.script_path),
            hint="leave it out, or set spot in [tool.nemo_sky]",
        )
    profile = clusters.place(profile, wanted)
    if wanted.gpus and ":" not in wanted.gpus and task.shape_of(spec, profile).gpus_per_node == 0:
        raise UserError(
            f"--gpus {wanted.gpus}: {spec.name} uses no GPUs, and this does not say how many it shall",
            hint=f"write --gpus {wanted.gpus}:1, or leave it out",
        )
    unmanaged = managed_because(spec, profile, request) is None
    if request.preemptions is not None and unmanaged and request.stage != "all":
        raise UserError(
            f"--preemptions {request.preemptions}: {spec.name} is no managed job, which alone is recovered",
            hint="add --managed or --spot, or leave it out",
        )
    return profile


def require_divisible(
    spec: runspec.Runspec, profile: clusters.Profile, request: Request, composed: config.Composed
) -> None:
    """Raises UserError when the config's parallelism does not go into the GPUs that the task asks for."""
    shape = task.shape_of(spec, profile, request.nodes)
    if profile.backend == "local" or not shape.gpus_per_node:
        return  # as many as this machine has: the trainer itself says so
    for key, message in fit.divides(composed.values, shape.nodes * shape.gpus_per_node):
        raise UserError(
            f"{key}: {message}",
            where=composed.where(key),
            hint="change the degrees, --nodes or the profile",
        )


def managed_because(spec: runspec.Runspec, profile: clusters.Profile, request: Request) -> str | None:
    """Why the stage is a managed job, which SkyPilot's controller recovers; None when it is none."""
    if profile.backend == "local":
        return None
    if (profile.spot or profile.spot_first) and spec.sky.spot is not False:
        return "spot nodes can be preempted, and it is recovered elsewhere"
    if request.retries:
        return f"--retries {request.retries}: SkyPilot begins it again when it fails"
    return "--managed: SkyPilot watches over it" if request.managed else None
