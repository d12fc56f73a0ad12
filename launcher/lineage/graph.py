"""Lineage as a tree: what an artifact came from, or what came from it, read from the store's manifests."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from launcher.artifacts import registry
from launcher.artifacts.manifest import Manifest
from launcher.artifacts.store import Store, StoreError
from launcher.artifacts.uri import SCHEME, ArtifactRef, parse_ref
from launcher.errors import Refused


@dataclass(frozen=True)
class Node:
    """An artifact version and its neighbours one step on.

    ``others`` are inputs that have no manifest in the store: folders that were given directly, and
    versions that are gone. They end the tree upwards; downwards it is empty.
    """

    manifest: Manifest
    children: tuple[Node, ...] = ()
    others: tuple[str, ...] = ()


def up(store: Store, ref: str | ArtifactRef) -> Node:
    """What an artifact was made of, and what that was made of. Raises Refused when ``ref`` is absent."""
    known: dict[str, Node] = {}

    def node(manifest: Manifest) -> Node:
        if manifest.uri not in known:
            children, others = [], []
            for uri in manifest.inputs.values():
                source = _resolve(store, uri)
                if source is None or source.uri == manifest.uri:
                    others.append(uri)
                else:
                    children.append(node(source))
            known[manifest.uri] = Node(manifest, tuple(children), tuple(others))
        return known[manifest.uri]

    return node(_start(store, ref))


def down(store: Store, ref: str | ArtifactRef) -> Node:
    """What was made of an artifact, and what was made of that. Raises Refused when ``ref`` is absent."""
    start = _start(store, ref)
    consumers: dict[str, list[Manifest]] = defaultdict(list)
    for name in registry.names(store):
        for version in registry.versions(store, name):
            manifest = registry.resolve(store, ArtifactRef(name, version=version))
            for uri in dict.fromkeys(manifest.inputs.values()):
                consumers[uri].append(manifest)

    def node(manifest: Manifest) -> Node:
        return Node(manifest, tuple(node(item) for item in consumers[manifest.uri] if item != manifest))

    return node(start)


def to_json(node: Node) -> dict[str, Any]:
    """The tree as plain values: per artifact its URI, type, metadata, producer, inputs and neighbours."""
    manifest = node.manifest
    return {
        "uri": manifest.uri,
        "type": manifest.type,
        "digest": manifest.digest,
        "bytes": manifest.bytes,
        "created_at": manifest.created_at,
        "metadata": dict(manifest.metadata),
        "inputs": dict(manifest.inputs),
        "producer": dict(manifest.producer),
        "others": list(node.others),
        "children": [to_json(child) for child in node.children],
    }


def _start(store: Store, ref: str | ArtifactRef) -> Manifest:
    return registry.resolve(store, parse_ref(ref) if isinstance(ref, str) else ref)


def _resolve(store: Store, uri: str) -> Manifest | None:
    if not uri.startswith(SCHEME):
        return None
    try:
        return registry.resolve(store, parse_ref(uri))
    except StoreError:
        raise
    except Refused:
        return None
