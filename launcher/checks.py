"""What can be checked without starting anything: runspecs, configs, profiles, and that artifacts join up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import clusters, cookbook, faults, inputs, runspec
from launcher.artifacts.fields import resolve_art_fields
from launcher.config import Composed, files
from launcher.errors import UserError, did_you_mean, nearest
from launcher.project import Project
from launcher.runspec import Problem
from launcher.runspec.discover import as_problem
from launcher.stage import compose, sized


def check_paths(paths: Sequence[Path]) -> tuple[list[Problem], int]:
    """Problems of the given scripts, folders and profiles, and how many files were looked at."""
    scripts = [path for path in paths if path.suffix not in (".yaml", ".yml")]
    problems: list[Problem] = []
    count = 0
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no file or folder {path}")
        if path.suffix in (".yaml", ".yml"):
            problems += _check_profile(path)
            count += 1
    found, _ = runspec.discover(scripts)
    return problems + runspec.check_paths(scripts), count + max(len(found), len(scripts))


def check_project(project: Project) -> tuple[list[Problem], int]:
    """Problems of every recipe, every config and every profile of the project."""
    folders = [folder for folder in project.recipes if folder.is_dir()]
    if not folders:
        raise UserError(f"no recipes folder: {', '.join(map(str, project.recipes))}")
    problems = runspec.check_paths(folders)
    specs, clashes = runspec.discover(folders)
    problems += clashes
    configs = 0
    composed: list[tuple[runspec.Runspec, str, Mapping[str, Any]]] = []
    for spec in specs:
        for path in files.configs(spec.config_dir):
            configs += 1
            problems += _check_config(spec, path, composed, project)
    problems += _check_edges(specs)
    for spec, name, fault in faults.of_families(composed):
        problems.append(_as_problem(spec, fault, spec.config_dir / f"{name}.yaml", None))
    profiles = sorted(project.clusters.glob("*.yaml"))
    for path in profiles:
        problems += _check_profile(path)
    return sorted(set(problems)), len(specs) + configs + len(profiles)


def _check_config(
    spec: runspec.Runspec,
    path: Path,
    composed: list[tuple[runspec.Runspec, str, Mapping[str, Any]]],
    project: Project,
) -> list[Problem]:
    """Problems of one config, which is added to ``composed`` when it can be read."""
    home = cookbook.root_of(spec.script_path, project)
    try:
        found = compose(spec, str(path), [], home, draft=home is not None)
        if home:
            cookbook.source_of(found, home)
            # Its image and its inputs stand in the config, where they are looked at anyway.
            read = cookbook.read(spec, found, home)
            spec = replace(spec, resources=read.resources, sky=read.sky)
            resolve_art_fields(found.values, dict.fromkeys(spec.sky.inputs), {})
        else:
            spec = sized(spec, found)
    except UserError as error:
        return [as_problem(error, path)]
    composed.append((spec, path.stem, found.values))
    gpus = spec.resources.gpus_per_node
    total = spec.resources.nodes * gpus if isinstance(gpus, int) else None
    faulty = faults.of_config(spec, found.values, total)
    return [_as_problem(spec, fault, path, found) for fault in faulty]


def _as_problem(spec: runspec.Runspec, fault: faults.Fault, path: Path, composed: Composed | None) -> Problem:
    """The fault at the line of its key, in whichever file of the config that stands."""
    file, _, line = ((composed.where(fault.key) if composed else None) or "").rpartition(":")
    if line.isdigit():
        return Problem(Path(file), int(line), str(fault))
    return Problem(path if fault.key else spec.script_path, 1, str(fault))


def _check_profile(path: Path) -> list[Problem]:
    try:
        clusters.load(str(path), path.parent)
    except UserError as error:
        return [as_problem(error, path)]
    return []


def _check_edges(specs: Sequence[runspec.Runspec]) -> list[Problem]:
    """Within a family every artifact that is consumed must be produced by some stage."""
    problems = []
    produced = {spec.sky.output.name for spec in specs if spec.sky.output}
    for spec in specs:
        for name, text in spec.sky.inputs.items():
            try:
                wanted = inputs.artifact_name(text)
            except UserError as error:
                problems.append(as_problem(error, spec.script_path))
                continue
            if wanted is not None and wanted not in produced and nearest(wanted, produced):
                message = f"input {name}: no stage makes {wanted!r}{did_you_mean(wanted, produced)}"
                problems.append(Problem(spec.script_path, 1, message))
    return problems
