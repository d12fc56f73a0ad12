"""Which artifact versions a stage consumes: resolved on the driver, pinned before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.artifacts.uri import is_path_ref, parse_ref
from launcher.errors import Refused, UserError
from launcher.provenance import files_digest
from launcher.runspec import Runspec

if TYPE_CHECKING:
    from launcher.artifacts.manifest import Manifest
    from launcher.artifacts.store import Store


@dataclass(frozen=True)
class Input:
    """One input of a stage: an artifact (pinned when ``manifest`` is known) or a folder of this machine.

    ``coming``: the run of the same pipeline that is to publish the artifact before this stage begins.
    """

    name: str
    ref: str
    manifest: Manifest | None = None
    path: str | None = None
    coming: str | None = None

    @property
    def artifact(self) -> str | None:
        """The artifact's name, None for a folder."""
        return artifact_name(self.ref)

    @cached_property
    def digest(self) -> str:
        """What stands for the content in a fingerprint. A folder would have to be read for it: of that its
        path, and what ``provenance.files_digest`` first found there."""
        if self.path:
            return f"{self.path} {files_digest(Path(self.path))}"
        return self.manifest.digest if self.manifest else self.ref

    def job_entry(self) -> dict[str, str]:
        """How job.yaml names it to the agent."""
        if self.path:
            return {"path": self.path, "digest": self.digest}
        if self.coming:
            return {"ref": self.ref, "run": self.coming}
        return {"ref": self.manifest.uri if self.manifest else self.ref}


def artifact_name(text: str) -> str | None:
    """The artifact that an input's text names, None for a path. Raises UserError when it is neither."""
    return None if is_path_ref(text) else parse_ref(text).name


def wanted(spec: Runspec, values: Mapping[str, Any], root: Path) -> dict[str, Input]:
    """The stage's inputs as the recipe declares them and ``run.<input>`` overrides them, not yet pinned.

    An input that the config sets to null is left out. Raises Refused for a path that does not exist.
    """
    overrides = values.get("run") or {}
    result = {}
    for name, declared in spec.sky.inputs.items():
        text = overrides.get(name, declared)
        if text is None:  # `run.data: null`: this config does without it, as mock data does
            continue
        text = str(text)
        if is_path_ref(text):
            path = Path(os.path.realpath(root / Path(text.removeprefix("file://")).expanduser()))
            if not path.exists():
                raise Refused(f"run.{name}: there is no file or folder {path}", where=str(spec.script_path))
            result[name] = Input(name, text, path=str(path))
        else:
            result[name] = Input(name, str(parse_ref(text)))
    return result


def pin(
    inputs: Mapping[str, Input],
    store: Store,
    tracking: str,
    made: Mapping[str, Manifest],
    coming: Mapping[str, str] | None = None,
) -> dict[str, Input]:
    """Every input with the exact version it will have.

    ``made`` holds what earlier stages of this launch published, ``coming`` maps what they will publish to
    their runs: both win over ``latest``, so that a stage gets the artifact of the stage before it and not a
    newer one of somebody else.
    Raises Refused when an artifact or version is absent.
    """
    from launcher.artifacts import registry

    def alias_version(name: str, alias: str) -> int | None:
        from launcher.lineage import mlflow_view

        return mlflow_view.get_alias(tracking, name, alias)

    pinned = {}
    for name, item in inputs.items():
        if item.path:
            pinned[name] = replace(item)  # an earlier stage may have changed what is in it
            continue
        ref = parse_ref(item.ref)
        newest = ref.version is None and ref.alias in (None, "latest")
        if newest and coming and ref.name in coming:
            pinned[name] = replace(item, coming=coming[ref.name])
            continue
        if newest and ref.name in made:
            manifest = made[ref.name]
        else:
            manifest = registry.resolve(store, ref, alias_version)
        pinned[name] = Input(name, item.ref, manifest=manifest)
    return pinned


def order(specs: list[Runspec]) -> list[Runspec]:
    """Stages so that each comes after those whose output it consumes; otherwise data before models, then
    by name.

    Raises UserError when stages feed each other in a circle.
    """
    producers = {spec.sky.output.name: spec for spec in specs if spec.sky.output}
    placed: list[Runspec] = []
    visiting: list[str] = []

    def place(spec: Runspec) -> None:
        if spec in placed:
            return
        if spec.name in visiting:
            raise UserError(f"stages feed each other in a circle: {' -> '.join([*visiting, spec.name])}")
        visiting.append(spec.name)
        for text in spec.sky.inputs.values():
            if not is_path_ref(text) and (before := producers.get(parse_ref(text).name)):
                place(before)
        visiting.pop()
        placed.append(spec)

    for spec in sorted(specs, key=lambda item: (not item.stage.startswith("data/"), item.name)):
        place(spec)
    return placed
