"""Recipe + profile -> SkyPilot task. Pure: the same inputs give the same task, byte for byte.

The task is what ``sky launch`` takes and what the local backend runs: ``setup`` once per node, then
``run`` on every node with SkyPilot's environment variables. Its schema is SkyPilot's own
(``sky.Task.from_yaml_config``).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from launcher import clusters, image
from launcher.clusters import Profile
from launcher.cookbook import Source
from launcher.errors import UserError
from launcher.money.want import alternatives, split_infra
from launcher.runspec import Runspec

# What the agent imports on a node, beside the standard library.
AGENT_NEEDS = ("pyyaml>=6", "boto3>=1.40", "mlflow-skinny==3.17.2", "psutil>=7")
VENV = "$HOME/.nemo-sky/venv"
# The folder of other cookbooks' repositories in a node's home.
COOKBOOKS = ".nemo-sky/cookbooks"

Task = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """How many nodes, and GPUs on each. 0 GPUs is a CPU stage; None leaves the count to the node."""

    nodes: int
    gpus_per_node: int | None


def shape_of(spec: Runspec, profile: Profile, nodes: int | None = None) -> Shape:
    """The flag wins over the profile, the profile over the recipe."""
    gpus = spec.resources.gpus_per_node if profile.gpus_per_node is None else profile.gpus_per_node
    return Shape(
        nodes=nodes or profile.nodes or spec.resources.nodes,
        gpus_per_node=None if isinstance(gpus, str) else gpus,  # "gpu": as many as the node has
    )


def build(
    spec: Runspec,
    profile: Profile,
    *,
    script: str,
    job_dir: str,
    artifacts: str,
    nodes: int | None = None,
    run_id: str | None = None,
    job_source: str | None = None,
    env: Mapping[str, str] | None = None,
    script_args: Sequence[str] = (),
    recovery: Mapping[str, Any] | None = None,
    source: Source | None = None,
) -> Task:
    """The SkyPilot task of one stage.

    ``script`` is the stage's script and ``job_dir`` the folder with job.yaml and train.yaml, both relative
    to the synced working directory; when ``job_source`` names a folder of the launcher's machine it is
    mounted at ``job_dir`` instead. ``artifacts`` is the store's root as a node sees it. ``run_id`` is None
    in a committed task: the node then takes SkyPilot's task id. ``recovery`` is SkyPilot's ``job_recovery``
    of a managed job. ``source`` is the repository of another cookbook's script, and ``script`` then is
    relative to it.

    Raises UserError when the place cannot run the stage.
    """
    shape = shape_of(spec, profile, nodes)
    envs = {
        **spec.env,
        **profile.env,
        **(env or {}),
        "NEMO_SKY_JOB": job_dir,
        "NEMO_SKY_ARTIFACTS": artifacts,
    }
    if run_id:
        envs["NEMO_SKY_RUN_ID"] = run_id
    task: Task = {"name": spec.name.replace("/", "-"), "workdir": "."}
    if shape.nodes != 1:
        task["num_nodes"] = shape.nodes
    resources = _resources(spec, profile, shape, source)
    if recovery:
        resources["job_recovery"] = dict(recovery)
    if resources:
        task["resources"] = resources
    mounts = {job_dir: job_source} if job_source else {}
    if source and profile.backend != "local":
        mounts[f"~/{COOKBOOKS}/{source.folder}"] = str(source.root)
    if mounts:
        task["file_mounts"] = mounts
    task["envs"] = {key: str(value) for key, value in envs.items()}
    if setup := _setup(spec, profile, source):
        task["setup"] = setup
    task["run"] = _run(spec, profile, script, script_args, source)
    if profile.config:
        task["config"] = dict(profile.config)
    return task


def dump(task: Task) -> str:
    """The task as YAML text, scripts as readable blocks."""
    return yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def image_of(spec: Runspec, profile: Profile) -> str | None:
    """The container image the stage runs in or the machine image that its nodes start from; None for a bare
    node."""
    return profile.image or (spec.image if profile.containers else None)


def container_of(spec: Runspec, profile: Profile) -> str | None:
    """The image of the stage unless it is a machine's, on which the stage runs as on a bare node."""
    name = image_of(spec, profile)
    return None if name and image.machines_of(name) else name


def _resources(spec: Runspec, profile: Profile, shape: Shape, source: Source | None) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if profile.backend == "local":
        return resources
    if profile.infra:
        resources["infra"] = profile.infra
    if shape.gpus_per_node != 0:
        types = profile.accelerator or spec.sky.accelerator
        if not types:
            raise UserError(
                f"{spec.name} asks for GPUs but neither it nor the profile {profile.name!r} says which",
                where=str(spec.script_path),
                hint='add accelerator = "H100" to [tool.nemo_sky], or accelerator: H100 to the profile',
            )
        count = shape.gpus_per_node or 1
        wanted = [f"{kind}:{count}" for kind in types]
        resources["accelerators"] = wanted[0] if len(wanted) == 1 else wanted
    else:
        if profile.cpus:
            resources["cpus"] = profile.cpus
        if profile.memory:
            resources["memory"] = profile.memory
    if spec.sky.spot is not False and profile.spot:
        resources["use_spot"] = True
    elif spec.sky.spot is not False and profile.spot_first:
        markets = [{"use_spot": True}, {"use_spot": False}]
        base, ways = alternatives({**resources, "ordered": markets})
        resources = {**base, "ordered": ways}
    if container := container_of(spec, profile):
        if container.startswith(("/", "~", ".")):
            raise UserError(
                f"{spec.name}: the image {container!r} is a file of one machine, which no other has",
                where=str(spec.script_path),
                hint="push it to a registry, and name it: `image: REGISTRY/NAME:TAG` in the profile"
                + (", or run.env.container=REGISTRY/NAME:TAG" if source else ""),
            )
        resources["image_id"] = container if container.startswith("docker:") else f"docker:{container}"
    elif machine := image_of(spec, profile):
        _require_bootable(machine, spec, profile, shape)
        resources["image_id"] = machine
    disk = profile.disk_size or spec.sky.disk_gb
    if profile.disk_size and spec.sky.disk_gb:
        disk = max(profile.disk_size, spec.sky.disk_gb)
    if disk:
        resources["disk_size"] = disk
    for key in ("disk_tier", "priority"):
        if (value := getattr(profile, key)) is not None:
            resources[key] = value
    if profile.network_tier and shape.nodes > 1:
        resources["network_tier"] = profile.network_tier
    if profile.ports:
        resources["ports"] = list(profile.ports)
    if profile.labels:
        resources["labels"] = dict(profile.labels)
    # A net for a cluster whose launcher is gone. SkyPilot sees to managed jobs itself.
    resources["autostop"] = {"idle_minutes": profile.idle_minutes, "down": True}
    return resources


def _require_bootable(machine: str, spec: Runspec, profile: Profile, shape: Shape) -> None:
    """Raises UserError where SkyPilot would not start a node from the image ``machine``."""
    where = clusters.where(profile, "image") if profile.image else str(spec.script_path)
    clouds = image.machines_of(machine)
    cloud, region, _ = split_infra(profile.infra)
    if cloud not in clouds:
        raise UserError(
            f"image {machine} is a machine of {' or '.join(clouds)}, not of {cloud or 'any cloud'}",
            where=where,
            hint=f"name the cloud: `infra: {clouds[0]}/REGION`; a container image is REGISTRY/NAME:TAG",
        )
    if machine.startswith("ami-") and not region:
        raise UserError(
            f"image {machine} is there in one region of AWS, and none is named",
            where=where,
            hint="`infra: aws/REGION` in the profile, or --region REGION",
        )
    if profile.network_tier == "best" and shape.nodes > 1 and cloud not in ("gcp", "nebius"):
        raise UserError(
            f"image {machine}: on {cloud} SkyPilot sets up `network_tier: best` for containers only",
            where=where,
            hint="`network_tier: standard` in the profile, or a container image",
        )


def _setup(spec: Runspec, profile: Profile, source: Source | None) -> str:
    """Shell lines that make a node ready: the profile's own, then the Python the stage needs, then what
    another cookbook checks out over its image."""
    parts = [text.strip() for text in (profile.activate, profile.setup) if text.strip()]
    if _python(spec, profile) == "image":
        parts.append(f"python -m pip install --quiet {shlex.join(AGENT_NEEDS)}")
    elif _python(spec, profile) == "venv":
        needs = shlex.join([*AGENT_NEEDS, *spec.dependencies])
        python = (spec.requires_python or "3.11").strip("<>=~! ").split(",")[0]
        parts += [
            'nemo_sky_stop() { echo "[nemo-sky] the set-up ends here: $1" >&2; exit 1; }',
            # Where SkyPilot has put uv (SKY_UV_INSTALL_DIR of 0.14.1's skylet/constants.py), as pip would.
            'export PATH="$HOME/.local/bin:$PATH"',
            "command -v uv >/dev/null || python3 -m pip install --quiet --user uv ||",
            "  nemo_sky_stop 'there is no uv, and pip cannot install it: do it in `setup` of the profile'",
            # Nodes that share a home, as on Slurm, make it one after another.
            'mkdir -p "$HOME/.nemo-sky"; exec 9>"$HOME/.nemo-sky/venv.lock"; flock 9',
            f'[ -x "{VENV}/bin/python" ] || uv venv --quiet --python {python} "{VENV}" ||',
            f"  nemo_sky_stop 'uv cannot make a virtual environment of Python {python}'",
            f'uv pip install --quiet --python "{VENV}/bin/python" {needs} ||',
            "  nemo_sky_stop 'uv cannot install the dependencies that the script and the agent name'",
            "flock -u 9",
        ]
    for checkout in source.checkouts if source else ():
        if container_of(spec, profile) is None:
            raise UserError(
                f"{spec.name} replaces {checkout.folder} of a container image, and nothing says of which",
                where=str(spec.script_path),
                hint="name it: `image: REGISTRY/NAME:TAG` in a profile with containers",
            )
        folder = shlex.quote(checkout.folder)
        parts += [
            f"rm -rf {folder}",
            f"git clone --quiet {shlex.quote(checkout.url)} {folder}",
            f"git -C {folder} checkout --quiet {shlex.quote(checkout.ref)}",
        ]
    return "".join(f"{part}\n" for part in (["set -e", *parts] if parts else []))


def _python(spec: Runspec, profile: Profile) -> str:
    """``image`` needs a container: without one the node makes a venv."""
    if profile.python == "image" and container_of(spec, profile) is None:
        return "venv"
    return profile.python


def _run(
    spec: Runspec, profile: Profile, script: str, script_args: Sequence[str], source: Source | None
) -> str:
    lines = [
        "set -e",
        *profile.activate.strip().splitlines(),
        'export NEMO_SKY_RUN_ID="${NEMO_SKY_RUN_ID:-${SKYPILOT_TASK_ID//[^A-Za-z0-9._-]/-}}"',
        # By rank: nodes may share a home.
        'work="$HOME/.nemo-sky/work/$NEMO_SKY_RUN_ID/node-$SKYPILOT_NODE_RANK"',
        'export NEMO_SKY_WORK="${NEMO_SKY_WORK:-$work}"',
        'export NEMO_SKY_CONFIG="$NEMO_SKY_WORK/config.yaml"',
        'export NEMO_SKY_JOB="${NEMO_SKY_JOB/#\\~/$HOME}"',
        # A project without a copy of the launcher gets one beside it.
        'export PYTHONPATH="$PWD:$HOME/.nemo-sky/code/$NEMO_SKY_RUN_ID${PYTHONPATH:+:$PYTHONPATH}"',
    ]
    if _python(spec, profile) == "venv":
        lines.append(f'source "{VENV}/bin/activate"')
    if source:
        folder = (
            shlex.quote(str(source.root))
            if profile.backend == "local"
            else f'"$HOME/{COOKBOOKS}/{source.folder}"'
        )
        lines.append(f"export NEMO_SKY_CODE={folder}")
        lines.append('export PYTHONPATH="$PYTHONPATH:$NEMO_SKY_CODE/src:$NEMO_SKY_CODE"')
    if source or spec.run.workdir:
        lines.append('case "$NEMO_SKY_JOB" in /*) ;; *) NEMO_SKY_JOB="$PWD/$NEMO_SKY_JOB" ;; esac')
        code = "$NEMO_SKY_CODE" if source else "$PWD"
        workdir = shlex.quote(spec.run.workdir) if spec.run.workdir else '"$code"'
        lines.append(f'code="{code}"; cd {workdir}')
        script = f'"$code"/{shlex.quote(script)}'
    else:
        script = shlex.quote(script)
    lines += source.commands if source else ()
    # Plain replacement: any other brace in a recipe's command is its own.
    command = spec.run.cmd.strip().replace("{script}", script).replace("{config}", '"$NEMO_SKY_CONFIG"')
    command = " ".join([command, *map(shlex.quote, script_args)])
    agent = 'exec python -m launcher.agent --job "$NEMO_SKY_JOB"'
    if spec.run.launch == "torchrun":
        # Every node's SkyPilot lists the same addresses in the same order: the first is the rendezvous.
        on_cpu = spec.sky.procs_per_node
        program = "python -m launcher.torchrun" if spec.sky.no_retry else "torchrun"
        lines += [
            f'ranks="${{SKYPILOT_NUM_GPUS_PER_NODE:-0}}"; [ "$ranks" -gt 0 ] || ranks={on_cpu}',
            'head="$(head -n1 <<<"$SKYPILOT_NODE_IPS")"',
            f"{agent} -- \\",
            f'  {program} --nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" \\',
            '  --nproc-per-node "$ranks" \\',
            '  --master-addr "$head" --master-port "${NEMO_SKY_MASTER_PORT:-29500}" \\',
            f"  {_without_python(command)}",
        ]
    elif spec.run.launch == "ray":
        # The agent starts the Ray head on rank 0, joins the others to it, and runs the command on the head.
        lines += [f"{agent} --ray -- \\", f"  {command}"]
    else:
        lines += [f"{agent} -- \\", f"  {command}"]
    return "".join(f"{line}\n" for line in lines)


def _without_python(command: str) -> str:
    """torchrun starts Python itself; any other program it runs as it is."""
    first, _, rest = command.partition(" ")
    return rest if first in ("python", "python3") else f"--no-python {command}"


class _Dumper(yaml.SafeDumper):
    """Multi-line text as literal blocks; no anchors, so that every task reads on its own."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
