"""Other cookbooks: stages written for Nemotron's own launcher, read where they are and as they are.

A stage is another cookbook's when the recipes folder that holds it stands in a repository of its own. Its
script is started as ours are. What differs is its config: the section ``run`` says how the job is executed,
``${oc.env:PWD}`` is the repository's root on the node, and the script fills in by itself what is left open.

    run.data, run.model, ...                  artifacts read: NAME:latest, NAME:vN
    run.env.container_image, container        the image, before the runspec's
    run.env.nodes, gpus_per_node              the size; nproc_per_node where there is no gpus_per_node
    run.env.env_vars                          environment variables
    run.env.workdir, startup_commands         where the command runs, and shell lines before it
    run.env.mounts                            ${auto_mount:git+URL@REF,FOLDER}: checked out over the image's
    run.train_script                          another script with the same needs

Other keys of ``run`` are for the schedulers of its own launcher, and are passed over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.config import Composed
from launcher.errors import UserError
from launcher.inputs import artifact_name
from launcher.project import MARKS, Project
from launcher.runspec import Runspec

# Nemotron's runspecs name no GPU; its recipes are written for nodes of eight of these.
ACCELERATOR = "H100"
CODE = "$NEMO_SKY_CODE"
# Variables of the machine that the command is typed on. Where a node has another value, its text stands here.
NODE_ENV: Mapping[str, str | None] = {
    "PWD": CODE, "NEMO_RUN_DIR": "$NEMO_SKY_WORK", "HOME": None, "HOSTNAME": None, "PATH": None,
    "PYTHONPATH": None, "LD_LIBRARY_PATH": None,
}  # fmt: skip
# Filled in from a user's settings there; without any, W&B is off.
PRESET: Mapping[str, Any] = {"run": {"wandb": {"project": None, "entity": None}}}

_CHECKOUT = re.compile(r"\$\{auto_mount:git\+(?P<url>[^,\s]+)@(?P<ref>[^@,\s]+)(?:,(?P<folder>[^}]*))?\}")
_NOT_INPUTS = ("train_script",)


@dataclass(frozen=True)
class Checkout:
    """A git repository at ``ref`` that takes the place of ``folder`` of the container image."""

    url: str
    ref: str
    folder: str


@dataclass(frozen=True)
class Source:
    """What a task needs of the repository that its script is from.

    ``root`` is the repository on this machine. ``commands`` are shell lines that run before the script.
    """

    root: Path
    checkouts: tuple[Checkout, ...]
    commands: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Its folder's name on a node: another one for every repository."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self.root.name)
        return f"{name}-{hashlib.sha256(str(self.root).encode()).hexdigest()[:6]}"


def root_of(script: Path, project: Project) -> Path | None:
    """The root of the repository of another cookbook's script; None for the project's own."""
    for folder in project.recipes:
        if not script.is_relative_to(folder):
            continue
        for above in (folder, *folder.parents):
            if above == project.root:
                return None
            if any((above / mark).exists() for mark in MARKS):
                return above
        return folder
    return None


def read(spec: Runspec, composed: Composed, root: Path) -> Runspec:
    """The runspec with what the section ``run`` of its config says instead, and with a GPU type.

    Raises UserError, with file:line, for what cannot be understood.
    """
    run, env = _section(composed, "run"), _section(composed, "run.env")
    sizes = {
        "nodes": _count(composed, 1, "run.env.nodes"),
        "gpus_per_node": _count(
            composed, 0, "run.env.gpus_per_node", "run.env.nproc_per_node", "run.nproc_per_node"
        ),
    }
    inputs = {key: value for key, value in run.items() if isinstance(value, str) and key not in _NOT_INPUTS}
    for key, text in inputs.items():
        try:
            artifact_name(text)
        except UserError as error:
            raise UserError(
                f"run.{key}: {error.message}", where=composed.where(f"run.{key}"), hint=error.hint
            ) from None
    # "python" is in no specification; its launcher runs such a script as it is, once per node.
    launch = "direct" if spec.run.launch == "python" else spec.run.launch
    return replace(
        spec,
        script_path=root / run["train_script"] if run.get("train_script") else spec.script_path,
        image=env.get("container_image") or env.get("container") or spec.image,
        run=replace(spec.run, launch=launch, workdir=env.get("workdir") or spec.run.workdir),
        resources=replace(spec.resources, **{key: size for key, size in sizes.items() if size is not None}),
        sky=replace(
            spec.sky,
            accelerator=spec.sky.accelerator or (ACCELERATOR,),
            inputs={**spec.sky.inputs, **inputs},
        ),
    )


def source_of(composed: Composed, root: Path) -> Source:
    """The checkouts and commands that the config asks for. Raises UserError for a mount of anything else."""
    env = _section(composed, "run.env")
    checkouts = []
    for number, text in enumerate(env.get("mounts") or ()):
        key = f"run.env.mounts.{number}"
        found = _CHECKOUT.fullmatch(str(text))
        if not found:
            raise UserError(
                f"{key}: {text!r} is a folder of one cluster; a new node does not have it",
                where=composed.where(key),
                hint="leave the mounts out with ~run.env.mounts, or mount it with a cluster profile's config",
            )
        folder = Path((found["folder"] or "").strip())
        if not folder.is_absolute() or len(folder.parts) < 3 or ".." in folder.parts:
            raise UserError(
                f"{key}: {str(folder)!r} is no folder of the image that a checkout can replace",
                where=composed.where(key),
            )
        checkouts.append(Checkout(found["url"], found["ref"], str(folder)))
    commands = env.get("startup_commands") or []
    if not isinstance(commands, list) or not all(isinstance(line, str) for line in commands):
        raise UserError(
            f"run.env.startup_commands must be a list of shell lines, not {commands!r}",
            where=composed.where("run.env.startup_commands"),
        )
    return Source(root, tuple(checkouts), tuple(commands))


def variables(values: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables of a config. The agent fills in ``$NEMO_SKY_*`` in them, too."""
    env = (values.get("run") or {}).get("env") or {}
    return {key: _text(value) for key, value in (env.get("env_vars") or {}).items()}


def script_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config without ``run``: there its script would look for a tracker's artifacts once more."""
    return {key: value for key, value in values.items() if key != "run"}


def _section(composed: Composed, key: str) -> Mapping[str, Any]:
    node: Any = composed.values
    for part in key.split("."):
        node = (node.get(part) if isinstance(node, Mapping) else None) or {}
    if not isinstance(node, Mapping):
        raise UserError(f"{key} must be a section, not {node!r}", where=composed.where(key))
    return node


def _count(composed: Composed, least: int, *keys: str) -> int | None:
    """The first of ``keys`` that the config has, as a number; a variable's value is text."""
    for key in keys:
        section, _, name = key.rpartition(".")
        value = _section(composed, section).get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)) or int(value) < least:
            raise UserError(
                f"{key} must be a whole number from {least}, not {value!r}", where=composed.where(key)
            )
        return int(value)
    return None


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else "" if value is None else str(value)
