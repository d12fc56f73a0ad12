"""The project a command works in: its root, its folders, and where artifacts and lineage are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from launcher import yamlfile
from launcher.errors import UserError, did_you_mean
from launcher.money.caps import Settings, settings

FILE_NAME = "nemo-sky.yaml"
KEYS = ("recipes", "clusters", "artifacts", "tracking", "s3_endpoint", "money")
# What the root of a repository holds.
MARKS = (".git", "pyproject.toml")
# Folders at a repository's root that hold examples of stages at most.
_NO_RECIPES = ("docs", "tests")


@dataclass(frozen=True)
class Project:
    """Settings with every path absolute.

    ``artifacts`` is an absolute folder or ``s3://bucket/prefix``; ``tracking`` is an MLflow tracking URI.
    """

    root: Path
    recipes: tuple[Path, ...]
    clusters: Path
    artifacts: str
    tracking: str
    s3_endpoint: str | None
    money: Settings = field(default_factory=Settings)

    @property
    def state(self) -> Path:
        """What nemo-sky writes: runs, and by default the artifacts and MLflow's database."""
        return self.root / ".nemo-sky"

    @property
    def runs(self) -> Path:
        return self.state / "runs"

    def show(self, path: Path) -> str:
        """``path`` as a person in the project would write it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def find(start: Path | None = None, recipes: Path | None = None) -> Project:
    """The project that holds ``start`` (default: the current directory), searched upwards; with ``recipes``,
    or ``$NEMO_SKY_RECIPES``, the stages of that folder or repository in place of its own.

    Raises UserError when there is none, or when its settings are wrong.
    """
    found = _find(start)
    named = recipes or os.environ.get("NEMO_SKY_RECIPES")
    if not named:
        return found
    folder = Path(os.path.realpath(Path(named).expanduser()))
    if not folder.is_dir():
        raise UserError(f"--recipes {folder}: there is no such folder")
    return replace(found, recipes=_stage_folders(folder, found.root))


def _stage_folders(folder: Path, root: Path) -> tuple[Path, ...]:
    """Where the stages of ``folder`` are: in itself, or for another repository in its folders of code."""
    if folder == root or not any((folder / mark).exists() for mark in MARKS):
        return (folder,)
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return tuple(path for path in inner if path.name not in _NO_RECIPES)


def _find(start: Path | None) -> Project:
    start = Path(os.path.realpath(start or Path.cwd()))
    if not start.is_dir():
        raise UserError(f"--project {start}: there is no such directory")
    for folder in (start, *start.parents):
        if (folder / FILE_NAME).is_file():
            return read(folder)
    raise UserError(
        f"no {FILE_NAME} in {start} or above it",
        hint=f"run inside a nemo-sky project, or name one with --project DIR; an empty {FILE_NAME} makes one",
    )


def read(root: Path) -> Project:
    """Read ``root/nemo-sky.yaml`` and the environment variables that override it."""
    file = yamlfile.read(root / FILE_NAME)
    for key in file.values:
        if key not in KEYS:
            raise UserError(f"unknown key {key!r}{did_you_mean(key, KEYS)}", where=file.where(key))

    def text(key: str, default: str, variable: str | None = None) -> str:
        if variable and os.environ.get(variable):
            return os.environ[variable]
        value = file.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value:
            raise UserError(f"{key} must be text, not {value!r}", where=file.where(key))
        return value

    recipes = file.values.get("recipes", ["recipes"])
    if not isinstance(recipes, list) or not all(isinstance(item, str) for item in recipes):
        raise UserError(f"recipes must be a list of folders, not {recipes!r}", where=file.where("recipes"))
    return Project(
        root=root,
        recipes=tuple(
            inner
            for item in recipes
            for inner in _stage_folders(Path(os.path.normpath(root / Path(item).expanduser())), root)
        ),
        clusters=root / text("clusters", "clusters"),
        artifacts=_store_root(root, text("artifacts", ".nemo-sky/artifacts", "NEMO_SKY_ARTIFACTS")),
        tracking=_tracking_uri(root, text("tracking", "sqlite:///.nemo-sky/mlflow.db", "NEMO_SKY_TRACKING")),
        s3_endpoint=text("s3_endpoint", "", "AWS_ENDPOINT_URL") or None,
        money=settings(file),
    )


def _store_root(root: Path, value: str) -> str:
    scheme = urlsplit(value).scheme
    if scheme == "s3":
        return value.rstrip("/")
    if scheme == "file":
        value = urlsplit(value).path
    elif scheme:
        raise UserError(f"artifacts: {value!r} is neither a folder nor s3://bucket/prefix")
    return os.path.realpath(root / Path(value).expanduser())


def _tracking_uri(root: Path, value: str) -> str:
    parts = urlsplit(value)
    if "@" in parts.netloc:
        raise UserError(
            "tracking must not hold a user or a password: it is written to files and logs",
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment instead",
        )
    if parts.scheme == "sqlite":
        path = Path(value.removeprefix("sqlite:///")).expanduser()
        return f"sqlite:///{os.path.realpath(root / path)}"
    if parts.scheme in ("http", "https", "databricks", "postgresql", "mysql", "mssql"):
        return value
    raise UserError(
        f"tracking: {value!r} is not an MLflow tracking URI that nemo-sky can use",
        hint="use http://HOST:PORT, or sqlite:///PATH for a file",
    )
