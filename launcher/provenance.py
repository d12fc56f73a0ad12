"""What a run was made from: the code, the commit, and the fingerprint that says whether two runs are one.

A fingerprint covers the stage's code, its composed config, its inputs by content, its image and the
script's arguments: not where it runs, so that a run can resume elsewhere.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.runspec import Runspec

MAX_PATCH_BYTES = 20_000_000


@dataclass(frozen=True)
class Commit:
    """The project's git state. ``sha`` is None outside a repository; ``patch`` is the uncommitted diff."""

    sha: str | None
    dirty: bool
    patch: bytes


def commit_of(root: Path) -> Commit:
    """The commit of the working tree at ``root`` and what stands in it uncommitted."""

    def git(*words: str) -> bytes | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, check=False, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    if sha is None:
        return Commit(None, False, b"")
    dirty = bool(git("status", "--porcelain"))
    patch = (git("diff", "HEAD", "--binary") or b"") if dirty else b""
    return Commit(sha.decode().strip(), dirty, patch[:MAX_PATCH_BYTES])


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a passwd entry
        return "unknown"


def code_files(spec: Runspec, specs: Iterable[Runspec]) -> list[Path]:
    """The Python files that ``spec`` can import: its own folder, its family's shared modules, and the
    folders beside the family that hold no stage (`recipes/bridge`); but not the folders of other stages, so
    that editing `eval` does not redo `pretrain`."""
    specs = list(specs)
    family = _family_dir(spec)
    own = spec.script_path.parent
    others = {other.script_path.parent for other in specs if other.script_path.parent != own}
    foreign = {folder for folder in others if not own.is_relative_to(folder) and folder != family}
    scripts = [spec.script_path, *(other.script_path for other in specs)]
    shared = [
        folder
        for folder in (sorted(family.parent.iterdir()) if family.name == spec.family else [])
        if folder.is_dir() and not any(script.is_relative_to(folder) for script in scripts)
    ]
    return sorted(
        path
        for folder in (family, *shared)
        for path in folder.rglob("*.py")
        if not any(path.is_relative_to(other) for other in foreign)
    )


def recipe_fingerprint(
    spec: Runspec,
    specs: Iterable[Runspec],
    *,
    values: Mapping[str, Any],
    image: str | None,
    script_args: Sequence[str],
    root: Path,
) -> str:
    """64 hex digits over all that decides the stage's output, except its inputs.

    ``values`` is the composed config with its ``${art:...}`` as they are written. Files that the config names
    under ``[tool.nemo_sky] sources`` count by name, size and modification time, as ``make`` would judge
    them; the Python library as a source counts by Python's version.
    """
    family = _family_dir(spec)
    code = {
        os.path.relpath(path, family): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in code_files(spec, specs)
    }
    sources = {key: _source_digest(_lookup(values, key), root) for key in spec.sky.sources}
    recipe = [spec.name, code, values, dict(spec.env), image, list(script_args), sources]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


def _family_dir(spec: Runspec) -> Path:
    """The folder of the family: the ancestor of the script that bears the family's name."""
    for folder in spec.script_path.parents:
        if folder.name == spec.family:
            return folder
    return spec.script_path.parent


def _lookup(values: Mapping[str, Any], dotted: str) -> Any:
    node: Any = values
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _source_digest(value: Any, root: Path) -> str:
    if value == "stdlib":
        return f"python {platform.python_version()}"
    path = root / str(value)
    if not path.exists():
        return str(value)
    digest = hashlib.sha256()
    for item in [path] if path.is_file() else sorted(path.rglob("*")):
        if item.is_file():
            stat = item.stat()
            digest.update(f"{item.relative_to(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
