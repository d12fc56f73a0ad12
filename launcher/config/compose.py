"""One stage's configuration: files, then overrides, then interpolation.

config/default.yaml <- its ``defaults`` first, then its own keys
                    <- key=value, +key=value, ++key=value, ~key, in the order given
                    -> ${...} filled in -> Composed
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.files import Source, dotted_keys, layers, locate, matches
from launcher.config.output import leaves
from launcher.config.overrides import ADD, DELETE, FORCE, Override, parse_override
from launcher.config.resolve import ArtResolver, resolve
from launcher.config.tree import Mark, Tree
from launcher.errors import UserError, nearest

RUN = "run"


@dataclass(frozen=True)
class Composed:
    """Plain values, every interpolation filled in.

    ``origin`` says for each dotted key of :func:`launcher.config.flatten` where its value is from:
    ``config/default.yaml:12`` (relative to the stage's folder) or ``override 'train.lr=1e-4'``. ``files``
    are all that were read, in the order in which they were merged.
    """

    values: dict[str, Any]
    origin: dict[str, str] = field(repr=False)
    files: tuple[Path, ...]
    _places: dict[str, str | None] = field(default_factory=dict, repr=False)

    def where(self, key: str) -> str | None:
        """``file:line`` of a dotted key or of its nearest ancestor; None when an override set it."""
        while key and key not in self._places:
            key = key.rpartition(".")[0]
        return self._places.get(key)


def compose(
    config_dir: Path,
    name: str,
    overrides: Sequence[str] = (),
    *,
    known: Sequence[str] = (),
    resolver: ArtResolver | None = None,
    stage_dir: Path | None = None,
    preset: Mapping[str, Any] | None = None,
    node_env: Mapping[str, str | None] | None = None,
    draft: bool = False,
) -> Composed:
    """Compose the configuration ``name`` of ``config_dir``, or the file when ``name`` is a path.

    ``key=value`` may change what the files hold and what a glob of ``known`` matches; any other key needs
    ``+``. Where ``known`` has keys of the section ``run`` (``run.data``, ``run.env.*``), files may hold no
    others there. ``${art:INPUT,FIELD}`` becomes ``resolver(INPUT, FIELD)``, and stays as it is without one;
    FIELD is ``path`` unless given. Origins are shown relative to ``stage_dir``, by default the folder above
    ``config_dir``. ``preset`` holds values that the files may change. For ``node_env`` and ``draft`` see
    :func:`launcher.config.resolve.resolve`.

    Raises UserError, with file:line where there is one, for anything wrong; and what ``resolver`` raises.
    """
    tree = Tree()
    for path, value in leaves(preset or {}):
        tree.put(path, value, Mark("nemo-sky", None))
    stage_dir = (stage_dir or config_dir.resolve().parent).resolve()
    sources = layers(locate(name, config_dir))
    for source in sources:
        tree.merge(source, _shown(source.path, stage_dir))
        _check_run(source, known)
    for text in overrides:
        _apply(tree, parse_override(text), known)
    values = resolve(tree, resolver, node_env=node_env, draft=draft)
    origin = {".".join(path): tree.origin(path).shown for path, _ in leaves(values)}
    places = {".".join(path): mark.where for path, mark in tree.marks.items()}
    return Composed(values, origin, tuple(dict.fromkeys(source.path for source in sources)), places)


def _shown(path: Path, stage_dir: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(stage_dir)) if path.is_relative_to(stage_dir) else str(path)


def _check_run(source: Source, known: Sequence[str]) -> None:
    """A misspelt input would be passed over in silence: the section's keys are the launcher's own."""
    allowed = [key for key in known if key.startswith(f"{RUN}.")]
    section = source.values.get(RUN)
    if section is None or not allowed:
        return
    if not isinstance(section, dict):
        raise UserError(f"{RUN} must be a section, not {section!r}", where=source.where(RUN))
    for key, value in section.items():
        if isinstance(value, dict) and not value:
            continue
        for path, _ in leaves({RUN: {key: value}}):
            leaf = ".".join(path)
            if not matches(leaf, allowed):
                raise UserError(f"unknown key {leaf!r}{_guess(leaf, allowed)}", where=source.where(*path))


def _apply(tree: Tree, override: Override, known: Sequence[str]) -> None:
    mark = Mark(f"override {override.text!r}", None)
    path, value = override.path, override.value
    try:
        if override.action == DELETE:
            _delete(tree, override)
        elif override.action == ADD and tree.get(path) is not None and not isinstance(value, dict):
            raise UserError(
                f"{override.key} is already {tree.get(path)!r}", hint=f"write {override.key}=... to change it"
            )
        else:
            if override.action not in (ADD, FORCE):
                _require_known(tree, path, value, known)
            tree.put(path, value, mark)
    except UserError as error:
        raise UserError(f"override {override.text!r}: {error.message}", hint=error.hint) from None


def _delete(tree: Tree, override: Override) -> None:
    if not tree.has(override.path):
        guess = _guess(override.key, dotted_keys(tree.values))
        raise UserError(f"there is no key {override.key!r} to remove{guess}")
    there = tree.get(override.path)
    if override.given and there != override.value:
        raise UserError(f"{override.key} is {there!r}, not {override.value!r}: nothing is removed")
    tree.delete(override.path)


def _require_known(tree: Tree, path: tuple[str, ...], value: Any, known: Sequence[str]) -> None:
    """Raises UserError for a key that neither the files nor the recipe know, inside tables too."""
    there = tree.get(path)
    if matches(".".join(path), known) or (
        tree.has(path) and not (isinstance(value, dict) and isinstance(there, dict))
    ):
        return
    if isinstance(value, dict) and value:
        for key, item in value.items():
            _require_known(tree, (*path, key), item, known)
    elif not tree.has(path):
        key, parent = ".".join(path), tree.get(path[:-1])
        if isinstance(parent, list):
            raise UserError(f"{'.'.join(path[:-1])} has {len(parent)} items: there is no {path[-1]!r}")
        guess = _guess(key, [*dotted_keys(tree.values), *known])
        raise UserError(
            f"unknown key {key!r}{guess}", hint=f"to add a key that the config does not have: +{key}=..."
        )


def _guess(key: str, candidates: Iterable[str]) -> str:
    """The nearest key; one that ends in nearly the same word counts too, whatever its section."""
    plain = sorted(candidate for candidate in candidates if not set(candidate) & set("*?["))
    ends = {candidate.rpartition(".")[2]: candidate for candidate in reversed(plain)}
    near = nearest(key, plain) or ends.get(nearest(key.rpartition(".")[2], ends) or "")
    return f"; did you mean {near!r}?" if near else ""
