"""The strict reader: every mistake of a script's runspec, each with its file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher.errors import UserError, did_you_mean, nearest
from launcher.runspec import table
from launcher.runspec.block import Block, find_block, openings, read_text
from launcher.runspec.discover import as_problem, same_names, scripts_under
from launcher.runspec.models import Problem, Runspec
from launcher.runspec.parse import NotAStage, Report, parse, read, shown

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INPUT = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_CONFIG_KEY = re.compile(r"[\w-]+(\.[\w-]+)*")
_CONFIG_GLOB = re.compile(r"[\w*?\[\]-]+(\.[\w*?\[\]-]+)*")
_OWN_VARIABLES = ("NEMO_SKY_", "SKYPILOT_")


def check(path: Path) -> list[Problem]:
    """Every problem of the script at ``path``, by line; an empty list when it is right."""
    problems: list[Problem] = []
    reported: set[tuple[str, ...]] = set()
    try:
        text = read_text(path)
        first, *more = openings(text) or [0]
        problems += [
            Problem(path, line, f"a second `script` block; the first is on line {first}") for line in more
        ]
        block = find_block(text, path)

        def report(keys: tuple[str, ...], message: str) -> None:
            # What follows from a problem that is already told would only hide it.
            if not any(keys[:length] in reported for length in range(1, len(keys) + 1)):
                reported.add(keys)
                problems.append(Problem(path, block.line(*keys), message))

        spec = read(block, report)
        _check_keys(block, report)
        _check_values(block, report)
        _check_meaning(spec, report)
    except UserError as error:
        problems.append(as_problem(error, path))
    return sorted(problems)


def _check_keys(block: Block, report: Report) -> None:
    """Unknown keys, with the nearest known one, or the table in which a key of that name belongs."""
    for path in table.TABLES:
        given: Any = block.data
        for key in path:
            given = given.get(key, {}) if isinstance(given, dict) else {}
        known = [field.key for field in table.fields_of(path)]
        for key in given if isinstance(given, dict) else ():
            if key in known:
                continue
            hint = did_you_mean(key, known)
            homes = [".".join(field.table) for field in table.FIELDS if field.key == key]
            if not hint and homes:
                hint = f"; it belongs in [{homes[0]}]"
            report((*path, key), f"unknown key {key!r} in [{'.'.join(path)}]{hint}")


def _check_values(block: Block, report: Report) -> None:
    """Enumerations and bounds; types are reported by the reader."""
    for field in table.FIELDS:
        value: Any = block.data
        for key in field.path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None or not field.kind.accepts(value):
            continue
        if field.kind is table.VERSION and value != table.SCHEMA:
            want = f'schema must be "{table.SCHEMA}", the only version there is, not {shown(value)}'
            report(field.path, want)
        elif field.allowed and value not in field.allowed:
            guess = did_you_mean(value, field.allowed)
            choices = ", ".join(f'"{choice}"' for choice in field.allowed)
            report(field.path, f"{field.name} must be one of {choices}, not {shown(value)}{guess}")
        elif field.minimum is not None and isinstance(value, int) and value < field.minimum:
            report(field.path, f"{field.name} must be at least {field.minimum}, not {value}")


def _check_meaning(spec: Runspec, report: Report) -> None:
    """What only the whole of a well-typed runspec can show."""
    if not spec.name:
        report((*table.RUNSPEC, "name"), 'name is missing: "FAMILY/STAGE", as in "tiny/pretrain"')
    elif not _NAME.fullmatch(spec.name):
        report(
            (*table.RUNSPEC, "name"),
            f'name must be "FAMILY/STAGE", as in "tiny/pretrain", not {shown(spec.name)}',
        )
    _check_command(spec.run.cmd, report)
    _check_config(spec, report)
    for name in spec.env:
        path = (*table.RUNSPEC, "env", name)
        if not _VARIABLE.fullmatch(name):
            report(path, f"{name!r} cannot be the name of an environment variable")
        elif name.startswith(_OWN_VARIABLES):
            report(path, f"{name} is set by the launcher, not by a recipe")
    for index, kind in enumerate(spec.sky.accelerator):
        if not re.fullmatch(r"[A-Za-z0-9._-]+", kind):
            item = (*table.SKY, "accelerator", str(index))
            report(
                item,
                f'{shown(kind)} is not a GPU type such as "H100"; their number is resources.gpus_per_node',
            )
    if spec.sky.checkpoint_dir is not None and _leaves_folder(spec.sky.checkpoint_dir):
        report(
            (*table.SKY, "checkpoint_dir"), "nemo_sky.checkpoint_dir must be a folder inside the run's own"
        )
    _check_no_retry(spec.sky.no_retry, report)
    _check_artifacts(spec, report)


def _leaves_folder(text: str) -> bool:
    return not text or Path(text).is_absolute() or ".." in Path(text).parts


def _check_no_retry(codes: Iterable[int], report: Report) -> None:
    from launcher.agent.ends import AGAIN

    for index, code in enumerate(codes):
        item = (*table.SKY, "no_retry", str(index))
        if not 1 <= code <= 255:
            report(item, f"nemo_sky.no_retry must hold exit codes from 1 to 255, not {code}")
        elif code in AGAIN:
            report(item, f"nemo_sky.no_retry: {code} is the agent's: {AGAIN[code]}, which a retry may mend")


def _check_command(cmd: str, report: Report) -> None:
    path = (*table.RUN, "cmd")
    words = re.findall(r"\{(\w+)\}", cmd)
    for word in words:
        if word not in ("script", "config") and (meant := nearest(word, ("script", "config"))):
            report(path, f"run.cmd has {{{word}}}; did you mean {{{meant}}}?")
            return
    if "script" not in words:
        report(path, "run.cmd has no {script}: the script would not run")


def _check_config(spec: Runspec, report: Report) -> None:
    from launcher.config import files  # the only need of the config package, and not to parse

    if not spec.config_dir.is_dir():
        where = (*table.CONFIG, "dir")
        report(where, f"config.dir: there is no folder {spec.config.dir} beside the script")
        return
    try:
        path = files.locate(spec.config.default, spec.config_dir)
    except UserError as error:
        report((*table.CONFIG, "default"), f"config.default: {error.message}")
        return
    keys = files.known_keys(path)
    for index, key in enumerate(spec.sky.sources):
        item = (*table.SKY, "sources", str(index))
        if not _CONFIG_KEY.fullmatch(key):
            report(item, f"{shown(key)} is not a configuration key such as source.path")
        elif key not in keys and not files.matches(key, spec.sky.config_keys):
            report(item, f"{path.name} has no key {key!r}{did_you_mean(key, keys)}")
    for index, key in enumerate(spec.sky.config_keys):
        if not _CONFIG_GLOB.fullmatch(key):
            report(
                (*table.SKY, "config_keys", str(index)),
                f"{shown(key)} is not a glob of configuration keys such as train.*",
            )


def _check_artifacts(spec: Runspec, report: Report) -> None:
    from launcher.artifacts.types import TYPES
    from launcher.artifacts.uri import check_name, is_path_ref, parse_ref

    for name, ref in spec.sky.inputs.items():
        path = (*table.SKY, "inputs", name)
        if not _INPUT.fullmatch(name) or name == "env":
            report(path, f"{name!r} cannot be the name of an input: `run.{name}` must be a free plain key")
        try:
            if not is_path_ref(ref):
                parse_ref(ref)
        except UserError as error:
            report(path, f"nemo_sky.inputs.{name}: {error.message}")
    output = spec.sky.output
    if output is None:
        return
    if output.type not in TYPES:
        guess = did_you_mean(output.type, TYPES) or f"; there are: {', '.join(TYPES)}"
        report((*table.OUTPUT, "type"), f"unknown artifact type {shown(output.type)}{guess}")
    try:
        check_name(output.name)
    except UserError as error:
        report((*table.OUTPUT, "name"), f"nemo_sky.output.name: {error.message}")


def check_paths(paths: Iterable[Path]) -> list[Problem]:
    """Every problem of the given scripts, and of the stages found under the given folders.

    A file that is named must be a stage's script; in a folder, scripts without ``[tool.runspec]`` are
    other people's and are passed over. Two stages of one name are a problem too.
    """
    problems: list[Problem] = []
    specs: dict[Path, Runspec] = {}
    for path in paths:
        if not path.exists():
            problems.append(Problem(path, 1, "there is no such file or folder"))
        for script in scripts_under([path]):
            try:
                specs[script] = parse(script)
            except NotAStage:
                if path.is_dir():
                    continue
            except UserError:
                pass  # told below, with all else that is wrong
            problems += check(script)
    return sorted(problems + same_names(specs))
