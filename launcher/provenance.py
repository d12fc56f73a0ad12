"""What a run was made from: the code, the commit, and the fingerprint that says whether two runs are one.

A fingerprint covers the stage's code, its composed config, its inputs, its image and the script's arguments:
not where it runs, so that a run can resume elsewhere. Artifacts count by content, folders by the names, sizes
and modification times of their files.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from launcher.runspec import Runspec

MAX_PATCH_BYTES = 20_000_000
GIT_S = 30.0
# A patch that `git apply` takes, whatever the user has configured.
_DIFF = ("diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative",
         "--submodule=short", "--src-prefix=a/", "--dst-prefix=b/")  # fmt: skip


@dataclass(frozen=True)
class Commit:
    """The project's git state. ``sha`` is None outside a repository; ``patch`` is the uncommitted diff, with
    the new files that git does not ignore. It always applies: ``left_out`` says what is not in it."""

    sha: str | None
    dirty: bool
    patch: bytes
    left_out: str | None = None


def commit_of(root: Path, secret: Path | None = None, most: int = MAX_PATCH_BYTES) -> Commit:
    """The commit of the working tree at ``root``, and what is uncommitted there but the file ``secret``, in a
    patch of at ``most`` so many bytes."""
    sha = _git(root, "rev-parse", "HEAD")
    if sha is None:
        return Commit(None, False, b"")
    found = Commit(sha.decode().strip(), bool(_git(root, "status", "--porcelain")), b"")
    if not found.dirty:
        return found
    top = Path(os.fsdecode((_git(root, "rev-parse", "--show-toplevel") or b"").rstrip(b"\n")))
    hidden = secret.expanduser().resolve() if secret else None
    within = hidden is not None and hidden.is_relative_to(top)
    but = [f":(top,exclude,literal){hidden.relative_to(top)}"] if hidden and within else []
    listed = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", ".", *but) or b""
    # A name that ends in a slash is another repository.
    new = [os.fsdecode(name) for name in listed.split(b"\0") if name and not name.endswith(b"/")]
    sizes = {name: (root / name).lstat().st_size for name in new if os.path.lexists(root / name)}
    smallest = sorted(sizes, key=lambda name: sizes[name])  # of code and data the code
    sums = accumulate(sizes[name] for name in smallest)
    small = [name for name, total in zip(smallest, sums, strict=True) if total <= most]
    for names in (small, []) if small else ([],):
        patch = _diff(root, names, but)
        if patch is not None and len(patch) <= most:
            left = smallest[len(names) :]
            megabytes = sum(sizes[name] for name in left) / 1e6
            says = f"new files: {len(left)} of {megabytes:.1f} MB, such as {left[-1]}" if left else None
            return replace(found, patch=patch, left_out=says)
    return replace(found, left_out=f"all changes: they make no patch of {most / 1e6:g} MB at most")


def _diff(root: Path, new: Sequence[str], but: Sequence[str]) -> bytes | None:
    """The working tree beside its commit, with the ``new`` files, which git does not know. It is told of them
    in a copy of its index: the user's own stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        env = {}
        if new:
            index = os.fsdecode((_git(root, "rev-parse", "--git-path", "index") or b"").rstrip(b"\n"))
            env = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            try:
                shutil.copyfile(root / index, env["GIT_INDEX_FILE"])
            except OSError:
                return None
            add = ("--literal-pathspecs", "add", "--intent-to-add")
            names = ("--pathspec-from-file=-", "--pathspec-file-nul")
            if _git(root, *add, *names, stdin=os.fsencode("\0".join(new)), env=env) is None:
                return None
        return _git(root, *_DIFF, "--", ":/", *but, env=env)


def _git(root: Path, *words: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes | None:
    """What git prints at ``root``; None where it fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            input=stdin,
            env={**os.environ, **(env or {})},
            capture_output=True,
            check=False,
            timeout=GIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


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
    return files_digest(path) if path.exists() else str(value)


def files_digest(path: Path) -> str:
    """64 hex digits over the name, size and modification time of every file under ``path``, or of that one
    file. No file is read: a folder of 100,000 takes a second. Links are followed, to each folder once."""
    found: list[tuple[tuple[str, ...], int, int]] = []
    seen: set[tuple[int, int]] = set()
    todo: list[tuple[str, tuple[str, ...]]] = [(str(path), ())]
    while todo:
        at, name = todo.pop()
        with contextlib.suppress(OSError):  # gone meanwhile, or a link to nothing
            status = os.stat(at)
            if stat.S_ISREG(status.st_mode):
                found.append((name, status.st_size, status.st_mtime_ns))
            elif stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                todo += [(f"{at}/{item}", (*name, item)) for item in sorted(os.listdir(at), reverse=True)]
    digest = hashlib.sha256()
    for name, size, changed in sorted(found):
        digest.update(f"{'/'.join(name) or '.'}\0{size}\0{changed}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
