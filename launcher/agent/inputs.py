"""What the script reads: its inputs in ``$NEMO_SKY_INPUTS``, its config with every path filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.agent.job import Job, Node
from launcher.artifacts import registry, transfer
from launcher.artifacts.fields import resolve_art_fields
from launcher.artifacts.manifest import Manifest
from launcher.artifacts.store import FileStore, Store
from launcher.artifacts.uri import parse_ref
from launcher.errors import Refused
from launcher.lineage import fingerprint


@dataclass(frozen=True)
class Input:
    """One input: the pinned version of an artifact, or a folder of this node and the ``digest`` that the
    launcher's fingerprint has for it."""

    name: str
    manifest: Manifest | None = None
    path: Path | None = None
    digest: str | None = None

    @property
    def uri(self) -> str:
        return self.manifest.uri if self.manifest else f"file://{self.path}"

    def event(self, store: Store) -> dict[str, Any]:
        """How the journal names it."""
        if self.manifest is None:
            return {"name": self.name, "uri": self.uri, "type": None, "digest": None, "base_uri": self.uri}
        return {
            "name": self.name,
            "uri": self.uri,
            "type": self.manifest.type,
            "digest": self.manifest.digest,
            "base_uri": store.uri(self.manifest.base),
        }


def resolve(job: Job, store: Store) -> list[Input]:
    """The exact inputs. The launcher has pinned them; a task that was submitted by hand gets the newest.

    Raises Refused when one is absent.
    """
    found = []
    for name, entry in job.inputs.items():
        if "path" in entry:
            path = Path(entry["path"])
            if not path.exists():
                raise Refused(
                    f"input {name}: there is no file or folder {path} on this node",
                    hint="`nemo-sky artifacts import` puts it where every node can get it",
                )
            found.append(Input(name, path=path, digest=entry.get("digest")))
        elif "run" in entry:
            found.append(Input(name, _made_before(store, entry["ref"], entry["run"])))
        else:
            found.append(Input(name, registry.resolve(store, parse_ref(entry["ref"]), _alias(job))))
    return found


def _made_before(store: Store, ref: str, run_id: str) -> Manifest:
    """What the stage before this one in its pipeline has published."""
    name = parse_ref(ref).name
    if manifest := registry.made_with(store, name, "run_id", run_id):
        return manifest
    raise Refused(f"{run_id}, which comes before this stage, has published no art://{name}")


def provenance(job: Job, inputs: list[Input]) -> dict[str, Any]:
    """What the launcher said of the run's making. A stage of a pipeline has its fingerprint only now that its
    inputs are made; it is what the launcher reckons for them later."""
    if job.provenance.get("fingerprint") or job.recipe_fingerprint is None:
        return dict(job.provenance)
    digests = {
        item.name: item.manifest.digest if item.manifest else item.digest or str(item.path) for item in inputs
    }
    return {**job.provenance, "fingerprint": fingerprint.of(job.recipe_fingerprint, digests)}


def fetch(inputs: list[Input], node: Node, store: Store) -> None:
    """Put every input into its folder, verified. From a store in a folder they are linked, not copied."""
    node.inputs.mkdir(parents=True, exist_ok=True)
    for item in inputs:
        place = node.inputs / item.name
        link = isinstance(store, FileStore)
        if item.manifest:
            if place.is_dir() and (link or not transfer.holds_exactly(place, item.manifest.files)):
                transfer.remove(place)  # an earlier attempt's, of another version or damaged
            registry.fetch(store, item.manifest, place, link=link)
        else:
            transfer.remove(place)
            place.symlink_to(item.path or "")


def script_config(job: Job, node: Node, inputs: list[Input]) -> dict[str, Any]:
    """The script's config on this node: no token, no ``${art:...}`` is left in it.

    Raises UserError for a field that an input does not have.
    """
    filled = resolve_art_fields(
        job.config,
        {item.name: item.manifest for item in inputs},
        {item.name: str(node.inputs / item.name) for item in inputs},
        final=True,
    )

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        return node.fill(value) if isinstance(value, str) else value

    result: dict[str, Any] = fill(filled)
    return result


def write_config(values: Mapping[str, Any], path: Path) -> None:
    """The file that the script's ``--config`` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110))


def _alias(job: Job) -> Callable[[str, str], int | None]:
    def version(name: str, alias: str) -> int | None:
        from launcher.lineage import mlflow_view

        return mlflow_view.get_alias(job.tracking, name, alias) if job.tracking else None

    return version
